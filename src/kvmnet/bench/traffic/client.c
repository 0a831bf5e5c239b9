/* kvmnet-load: traffic for kvmnet bench, the same program in a guest and outside it. Prints one JSON object.
 *
 *   serve   port= life= [group= on=ADDRESS,...]   the other end, for so many seconds; the links that hear the group
 *   tcp     to= port= ms= streams= way=up|down
 *   udp     to= port= ms= rate= size= [ask=ADDRESS,...]   size: of the Ethernet frame with its checksum (RFC 2544)
 *   turns   to= port= count= size= by=udp|tcp             requests and answers, one after the other
 *   connect to= port= ms= streams=                        connections made, answered and closed
 *   hold    to= port= count=                              connections held all at once
 *   file    to= port= bytes=                              a file into a file, compared at the end
 *   steady  to= port= ms= us=                             a request every so many microseconds, answered or not: the longest gap
 *
 * Every load ends by itself: by its time, its bytes or its count, and at the latest by an alarm. */
#include "load.h"

#define FRAME 46u    /* Ethernet header and checksum, IPv4 and UDP headers */

static union address to;
static socklen_t to_length;
static char chunk[CHUNK];
static u32 hist[BUCKETS];

u64 now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (u64)t.tv_sec * 1000000000ull + (u64)t.tv_nsec;
}

/* Time in microseconds that the processors of this machine were busy, steal and guest time left out (proc(5)). */
u64 busy_us(void)
{
    unsigned long long user = 0, nice = 0, sys = 0, idle, wait, irq = 0, soft = 0;
    FILE *stat = fopen("/proc/stat", "r");
    if (!stat)
        return 0;
    if (fscanf(stat, "cpu %llu %llu %llu %llu %llu %llu %llu", &user, &nice, &sys, &idle, &wait, &irq, &soft) != 7)
        user = 0;
    fclose(stat);
    return (user + nice + sys + irq + soft) * 1000000ull / (u64)sysconf(_SC_CLK_TCK);
}

/* FNV-1a, carried on. */
u64 mix(u64 sum, const char *data, size_t length)
{
    if (!sum)
        sum = 0xcbf29ce484222325ull;
    for (size_t i = 0; i < length; i++)
        sum = (sum ^ (unsigned char)data[i]) * 0x100000001b3ull;
    return sum;
}

void die(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

socklen_t parse(const char *text, int port, union address *out)
{
    memset(out, 0, sizeof *out);
    if (inet_pton(AF_INET, text, &out->v4.sin_addr) == 1) {
        out->v4.sin_family = AF_INET, out->v4.sin_port = htons((uint16_t)port);
        return sizeof out->v4;
    }
    if (inet_pton(AF_INET6, text, &out->v6.sin6_addr) == 1) {
        out->v6.sin6_family = AF_INET6, out->v6.sin6_port = htons((uint16_t)port);
        return sizeof out->v6;
    }
    fprintf(stderr, "no address: %s\n", text);
    exit(1);
}

static int opened(int flags)
{
    int fd = socket(to.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | flags, 0), on = 1;
    if (fd < 0)
        die("socket");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(fd, &to.any, to_length) && errno != EINPROGRESS)
        die("connect");
    return fd;
}

static void ask(int fd, char kind, u64 amount)
{
    struct request r = {.kind = kind, .amount = htobe64(amount)};
    if (write(fd, &r, sizeof r) != sizeof r)
        die("ask");
}

static u64 told(int fd)
{
    u64 value;
    if (recv(fd, &value, sizeof value, MSG_WAITALL) != sizeof value)
        die("no answer");
    return be64toh(value);
}

/* Close without TIME_WAIT, so that many connections after each other do not use up the ports. */
static void drop(int fd)
{
    struct linger at_once = {1, 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(fd);
}

static u64 busy_there(void)
{
    int fd = opened(0);
    ask(fd, 'U', 0);
    u64 value = told(fd);
    drop(fd);
    return value;
}

static void print_hist(void)
{
    const char *comma = "";
    printf("\"times\": [");
    for (u32 i = 0; i < BUCKETS; i++)
        if (hist[i])
            printf("%s[%u,%u]", comma, i, hist[i]), comma = ",";
    printf("]");
}

static void tcp(u64 ms, int streams, int down)
{
    int fds[256];
    u64 bytes[256] = {0}, busy[2] = {busy_us(), busy_there()};
    struct pollfd ready[256];
    u32 resent = 0;
    for (int i = 0; i < streams; i++) {
        fds[i] = opened(0);
        ready[i] = (struct pollfd){fds[i], down ? POLLIN : POLLOUT, 0};
    }
    u64 began = now_ns(), until = began + ms * 1000000;
    for (int i = 0; i < streams; i++) {
        ask(fds[i], down ? 'C' : 'S', ms * 1000);
        fcntl(fds[i], F_SETFL, O_NONBLOCK);
    }
    for (int open = streams; open && (down || now_ns() < until);) {
        poll(ready, (nfds_t)streams, 100);
        for (int i = 0; i < streams; i++) {
            if (!ready[i].revents)
                continue;
            ssize_t n = down ? read(fds[i], chunk, sizeof chunk) : write(fds[i], chunk, sizeof chunk);
            if (n > 0)
                bytes[i] += (u64)n;
            else if (n == 0 || errno != EAGAIN)
                ready[i].fd = -1, open--;
        }
    }
    for (int i = 0; i < streams; i++) {
        struct tcp_info info;
        socklen_t length = sizeof info;
        fcntl(fds[i], F_SETFL, 0);
        if (!down) {
            shutdown(fds[i], SHUT_WR);
            bytes[i] = told(fds[i]);    /* what arrived counts, not what was sent */
            if (!getsockopt(fds[i], IPPROTO_TCP, TCP_INFO, &info, &length))
                resent += info.tcpi_total_retrans;
        }
    }
    u64 ended = now_ns();
    printf("{\"seconds\": %.6f, \"resent\": %u, \"busy_here\": %.6f, \"busy_there\": %.6f, \"bytes\": [",
           (double)(ended - began) / 1e9, resent, (double)(busy_us() - busy[0]) / 1e6, (double)(busy_there() - busy[1]) / 1e6);
    for (int i = 0; i < streams; i++)
        printf("%s%llu", i ? "," : "", (unsigned long long)bytes[i]);
    printf("]}\n");
}

static void counted(int fd, const char *whom, int port, u32 id, int last)
{
    union address who;
    socklen_t length = parse(whom, port, &who);
    struct mark m = {htonl(MAGIC | 'Q'), htonl(id), 0};
    struct counts c;
    struct pollfd ready = {fd, POLLIN, 0};
    u32 before = ~0u;
    for (int tries = 0; tries < 300; tries++) {    /* half a minute on a busy machine; until the count stands still: what is queued is received, too */
        m.seq = htonl((u32)tries);
        sendto(fd, &m, sizeof m, 0, &who.any, length);
        if (poll(&ready, 1, 100) < 1 || recv(fd, &c, sizeof c, 0) != sizeof c || c.mark.run != m.run || c.mark.seq != m.seq)
            continue;
        if (c.received == before) {
            printf("{\"received\": %u, \"twice\": %u, \"late\": %u, \"span\": %.6f}%s", ntohl(c.received), ntohl(c.twice),
                   ntohl(c.late), (double)be64toh(c.span_ns) / 1e9, last ? "" : ",");
            return;
        }
        before = c.received;
        usleep(10000);
    }
    errno = ETIMEDOUT;
    die("no count");
}

static void udp(u64 ms, u64 rate, u32 size, char *asked, int port)
{
    enum { MOST = 16 };
    int fd = socket(to.any.sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0), room = 4 << 20;
    u32 id = (u32)now_ns() ^ (u32)getpid() << 16, sent = 0, refused = 0;
    size_t length = size > FRAME + sizeof(struct mark) ? size - FRAME : sizeof(struct mark);
    if (length > 9000)
        length = 9000;
    static char room_of[MOST][9000];
    struct mmsghdr out[MOST];
    struct iovec parts[MOST];
    setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room);
    u64 busy[2] = {busy_us(), 0};
    for (int i = 0; i < MOST; i++) {
        parts[i] = (struct iovec){room_of[i], length};
        out[i] = (struct mmsghdr){.msg_hdr = {.msg_name = &to, .msg_namelen = to_length, .msg_iov = &parts[i], .msg_iovlen = 1}};
    }
    u64 began = now_ns(), elapsed = 0, end = ms * 1000000;
    while ((elapsed = now_ns() - began) < end && sent < MOST_PACKETS) {
        u64 due = elapsed * rate / 1000000000ull + 1;
        if (due <= sent + refused) {
            u64 next = (u64)(sent + refused) * 1000000000ull / rate;
            if (next > elapsed + 60000) {
                struct timespec nap = {0, (long)(next - elapsed - 50000)};
                if (nap.tv_nsec > 20000000)
                    nap.tv_nsec = 20000000;
                nanosleep(&nap, NULL);
            }
            continue;
        }
        u64 missing = due - sent - refused;
        unsigned n = missing < MOST ? (unsigned)missing : MOST;
        for (unsigned i = 0; i < n; i++)
            *(struct mark *)room_of[i] = (struct mark){htonl(MAGIC | 'D'), htonl(id), htonl(sent + i)};
        int done = sendmmsg(fd, out, n, 0);
        if (done > 0)
            sent += (u32)done;
        else if (errno == ENOBUFS || errno == ECONNREFUSED)
            refused++;
        else
            die("send");
    }
    printf("{\"seconds\": %.6f, \"sent\": %u, \"refused\": %u, \"busy_here\": %.6f, \"counts\": [", (double)elapsed / 1e9, sent,
           refused, (double)(busy_us() - busy[0]) / 1e6);
    for (char *name = strtok(asked, ","), *next; name; name = next) {
        next = strtok(NULL, ",");
        counted(fd, name, port, id, next == NULL);
    }
    printf("]}\n");
}

static void turns(int count, u32 size, int by_udp)
{
    int fd, lost = 0;
    size_t length = size < sizeof(struct mark) ? sizeof(struct mark) : size > 9000 ? 9000 : size;
    if (by_udp) {
        fd = socket(to.any.sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        if (connect(fd, &to.any, to_length))
            die("connect");
    } else {
        fd = opened(0);
        ask(fd, 'E', 0);
    }
    struct mark *m = (struct mark *)chunk;
    struct pollfd ready = {fd, POLLIN, 0};
    u64 began = now_ns();
    for (int i = 0; i < count; i++) {
        static char back[9000];
        *m = (struct mark){htonl(MAGIC | 'E'), 0, htonl((u32)i)};
        u64 asked = now_ns();
        if (write(fd, chunk, length) != (ssize_t)length)
            die("write");
        if (by_udp) {
            ssize_t got = 0;
            do
                got = poll(&ready, 1, 1000) == 1 ? recv(fd, back, sizeof back, 0) : 0;
            while (got > 0 && ((struct mark *)back)->seq != m->seq);    /* a late answer to an earlier request */
            if (got <= 0) {
                if (++lost > 20) {
                    errno = ETIMEDOUT;
                    die("no answers");
                }
                continue;
            }
        } else if (recv(fd, back, length, MSG_WAITALL) != (ssize_t)length)
            die("read");
        hist[bucket(now_ns() - asked)]++;
    }
    printf("{\"seconds\": %.6f, \"lost\": %d, ", (double)(now_ns() - began) / 1e9, lost);
    print_hist();
    printf("}\n");
}

static void connections(u64 ms, int streams)
{
    struct pollfd ready[256];
    u64 since[256], began = now_ns(), until = began + ms * 1000000;
    unsigned made = 0, failed = 0;
    for (int i = 0; i < streams; i++)
        ready[i] = (struct pollfd){opened(SOCK_NONBLOCK), POLLOUT, 0}, since[i] = now_ns();
    while (now_ns() < until) {
        poll(ready, (nfds_t)streams, 100);
        for (int i = 0; i < streams; i++) {
            struct request r = {.kind = 'N'};
            u64 value;
            if (!ready[i].revents)
                continue;
            if (ready[i].events == POLLOUT && write(ready[i].fd, &r, sizeof r) == sizeof r) {
                ready[i].events = POLLIN;
                continue;
            }
            if (ready[i].events == POLLIN && read(ready[i].fd, &value, sizeof value) == sizeof value)
                made++, hist[bucket(now_ns() - since[i])]++;
            else
                failed++;
            drop(ready[i].fd);
            since[i] = now_ns();
            ready[i] = (struct pollfd){opened(SOCK_NONBLOCK), POLLOUT, 0};
        }
    }
    u64 ended = now_ns();
    for (int i = 0; i < streams; i++)
        drop(ready[i].fd);
    printf("{\"seconds\": %.6f, \"made\": %u, \"failed\": %u, ", (double)(ended - began) / 1e9, made, failed);
    print_hist();
    printf("}\n");
}

/* Every connection is open when each is asked and answers once more. */
static void hold(int count)
{
    struct rlimit files = {(rlim_t)count + 64, (rlim_t)count + 64};
    setrlimit(RLIMIT_NOFILE, &files);
    int *fds = calloc((size_t)count, sizeof *fds), answered = 0;
    char word[8] = "kvmnet?";
    u64 began = now_ns();
    for (int i = 0; i < count; i++)
        fds[i] = opened(SOCK_NONBLOCK);
    u64 last = began + 10000000000ull, open_at = 0;
    for (int turn = 0; turn < 2; turn++) {
        answered = 0;
        for (int i = 0; i < count; i++) {
            struct request r = {.kind = 'E'};
            struct pollfd ready = {fds[i], POLLOUT, 0};
            u64 at = now_ns();
            if (at < last && poll(&ready, 1, (int)((last - at) / 1000000)) == 1 && !turn && write(fds[i], &r, sizeof r) != sizeof r)
                continue;
            if (write(fds[i], word, sizeof word) != sizeof word)
                continue;
        }
        for (int i = 0; i < count; i++) {
            char back[8];
            struct pollfd ready = {fds[i], POLLIN, 0};
            u64 at = now_ns();
            if (poll(&ready, 1, at < last ? (int)((last - at) / 1000000) : 0) == 1 && read(fds[i], back, sizeof back) == sizeof back)
                answered++;
        }
        if (!turn)
            open_at = now_ns();
    }
    printf("{\"seconds\": %.6f, \"answered\": %d}\n", (double)(open_at - began) / 1e9, answered);
    for (int i = 0; i < count; i++)
        drop(fds[i]);
}

static void file(u64 bytes)
{
    int source = memfd_create("load", MFD_CLOEXEC), fd;
    u64 sum = 0, number = 1;
    for (u64 made = 0; made < bytes; made += sizeof chunk) {
        for (size_t i = 0; i < sizeof chunk; i += sizeof number) {
            number = number * 6364136223846793005ull + 1442695040888963407ull;
            memcpy(chunk + i, &number, sizeof number);
        }
        size_t part = bytes - made < sizeof chunk ? (size_t)(bytes - made) : sizeof chunk;
        sum = mix(sum, chunk, part);
        if (write(source, chunk, part) != (ssize_t)part)
            die("file");
    }
    fd = opened(0);
    u64 began = now_ns();
    ask(fd, 'F', bytes);
    off_t at = 0;
    while ((u64)at < bytes)
        if (sendfile(fd, source, &at, (size_t)(bytes - (u64)at)) <= 0)
            die("sendfile");
    int same = told(fd) == sum;
    printf("{\"seconds\": %.6f, \"bytes\": %llu, \"same\": %s}\n", (double)(now_ns() - began) / 1e9, (unsigned long long)bytes,
           same ? "true" : "false");
    drop(fd);
}

/* Answers that are later than this are of no use to anybody: their requests count as lost. */
#define LATE_NS 1000000000ull

/* A gap begins when the first request is sent that nobody answers, and ends when the next one is sent that somebody does. */
static void steady(u64 ms, u64 us)
{
    u32 most = (u32)(ms * 1000 / us) + 1, sent = 0, lost = 0, at = 0;
    u64 *asked = calloc(most + 1, sizeof *asked), began = now_ns(), end = began + ms * 1000000, next = began;
    unsigned char *came = calloc(most + 1, 1);
    int fd = socket(to.any.sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct pollfd ready = {fd, POLLIN, 0};
    struct mark m, back;
    if (connect(fd, &to.any, to_length))
        die("connect");
    for (u64 now; (now = now_ns()) < end + LATE_NS;) {
        if (now >= next && now < end && sent < most) {
            m = (struct mark){htonl(MAGIC | 'E'), 0, htonl(sent)};
            asked[sent++] = now;
            if (send(fd, &m, sizeof m, 0) < 0 && errno == EBADF)    /* no way out for a moment is a request that is lost */
                die("send");
            next = next + us * 1000 > now ? next + us * 1000 : now + us * 1000;    /* what was missed is not made up for */
        }
        u64 until = now < end ? next : end + LATE_NS;
        struct timespec nap = {0, (long)(until > now ? until - now < 100000000 ? until - now : 100000000 : 0)};
        if (ppoll(&ready, 1, &nap, NULL) == 1)
            while (recv(fd, &back, sizeof back, MSG_DONTWAIT) == sizeof back) {
                u32 seq = ntohl(back.seq);
                if (seq < sent && now_ns() - asked[seq] <= LATE_NS)
                    came[seq] = 1;
            }
        if (now >= end && sent && came[sent - 1])
            break;
    }
    u64 ended = now_ns(), gap = 0;
    for (u32 i = 0, first; i < sent; i++) {
        if (came[i])
            continue;
        for (first = i; i < sent && !came[i]; i++)
            lost++;
        u64 length = (i < sent ? asked[i] : ended) - asked[first];
        if (length > gap)
            gap = length, at = first;
    }
    printf("{\"seconds\": %.6f, \"sent\": %u, \"lost\": %u, \"gap\": %.6f, \"after\": %.6f, \"over\": %s}\n", (double)(ended - began) / 1e9,
           sent, lost, (double)gap / 1e9, lost ? (double)(asked[at] - began) / 1e9 : 0.0, sent && came[sent - 1] ? "true" : "false");
}

static char *word(int argc, char **argv, const char *name, const char *otherwise)
{
    size_t length = strlen(name);
    for (int i = 2; i < argc; i++)
        if (!strncmp(argv[i], name, length) && argv[i][length] == '=')
            return argv[i] + length + 1;
    return (char *)otherwise;
}

static long number(int argc, char **argv, const char *name, long otherwise, long most)
{
    char *text = word(argc, argv, name, NULL);
    long value = text ? atol(text) : otherwise;
    if (value < 1 || value > most) {
        fprintf(stderr, "%s=%ld: 1 to %ld\n", name, value, most);
        exit(1);
    }
    return value;
}

#define NUMBER(name, otherwise, most) number(argc, argv, name, otherwise, most)
#define WORD(name, otherwise) word(argc, argv, name, otherwise)

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    int port = (int)NUMBER("port", 5199, 65535), streams = (int)NUMBER("streams", 1, 256);
    u64 ms = (u64)NUMBER("ms", 1000, 60000);
    char asked[2048];
    if (!strcmp(what, "serve"))
        return serve(port, (int)NUMBER("life", 600, 86400), WORD("group", NULL), WORD("on", "0.0.0.0"));
    to_length = parse(WORD("to", ""), port, &to);
    snprintf(asked, sizeof asked, "%s", WORD("ask", WORD("to", "")));
    alarm((unsigned)(ms / 1000) + 40);
    if (!strcmp(what, "tcp"))
        tcp(ms, streams, !strcmp(WORD("way", "up"), "down"));
    else if (!strcmp(what, "udp"))
        udp(ms, (u64)NUMBER("rate", 1000, 100000000), (u32)NUMBER("size", 64, 9046), asked, port);
    else if (!strcmp(what, "turns"))
        turns((int)NUMBER("count", 1000, 10000000), (u32)NUMBER("size", 64, 9000), !strcmp(WORD("by", "udp"), "udp"));
    else if (!strcmp(what, "connect"))
        connections(ms, streams);
    else if (!strcmp(what, "hold"))
        hold((int)NUMBER("count", 1000, 4000));
    else if (!strcmp(what, "file"))
        file((u64)NUMBER("bytes", 16 << 20, MOST_FILE));
    else if (!strcmp(what, "steady"))
        steady(ms, (u64)NUMBER("us", 1000, 1000000));
    else {
        fprintf(stderr, "no load %s\n", what);
        return 1;
    }
    return 0;
}
