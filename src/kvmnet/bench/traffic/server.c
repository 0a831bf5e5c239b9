/* The end that is loaded: one thread, one port for TCP and UDP. It leaves the terminal when it listens, and it ends by
 * itself after its life. */
#include "load.h"

struct peer { int fd, file; char kind; unsigned have; struct request asked; u64 done, sum, until; char rest[16]; };

static struct {
    u32 run, received, twice, late, highest;
    u64 first, last;
    unsigned char seen[MOST_PACKETS / 8];
} run;

static char chunk[CHUNK];
static int poller;

static void want(struct peer *p, u32 events)
{
    struct epoll_event event = {.events = events, .data.ptr = p};
    epoll_ctl(poller, EPOLL_CTL_MOD, p->fd, &event);
}

static void leave(struct peer *p)
{
    if (p->file >= 0)
        close(p->file);
    close(p->fd);
    free(p);
}

/* Answer with 8 bytes; the asker closes, also when it got none. */
static void answer(struct peer *p, u64 value)
{
    value = htobe64(value);
    p->kind = '.';
    if (write(p->fd, &value, sizeof value) < 0)
        shutdown(p->fd, SHUT_RDWR);
}

static void begin(struct peer *p)
{
    p->kind = p->asked.kind;
    u64 amount = be64toh(p->asked.amount);
    p->asked.amount = amount;
    switch (p->kind) {
    case 'C':
        p->until = now_ns() + (amount < LONGEST_US ? amount : LONGEST_US) * 1000;
        want(p, EPOLLOUT);
        break;
    case 'F':
        p->file = amount <= MOST_FILE ? memfd_create("load", MFD_CLOEXEC) : -1;
        if (p->file < 0)
            leave(p);
        break;
    case 'U': answer(p, busy_us()); break;
    case 'N': answer(p, 0); break;
    }
}

static void filed(struct peer *p, ssize_t got)
{
    p->sum = mix(p->sum, chunk, (size_t)got);
    for (ssize_t put = 0, n; put < got; put += n)
        if ((n = write(p->file, chunk + put, (size_t)(got - put))) <= 0) {
            leave(p);
            return;
        }
    if ((p->done += (u64)got) >= p->asked.amount)
        answer(p, p->sum);
}

static void readable(struct peer *p)
{
    if (p->have < sizeof p->asked) {
        ssize_t got = read(p->fd, (char *)&p->asked + p->have, sizeof p->asked - p->have);
        if (got <= 0) {
            if (got == 0 || errno != EAGAIN)
                leave(p);
            return;
        }
        if ((p->have += (unsigned)got) == sizeof p->asked)
            begin(p);
        return;
    }
    size_t room = sizeof chunk;
    if (p->kind == 'F' && p->asked.amount - p->done < room)
        room = (size_t)(p->asked.amount - p->done);
    ssize_t got = read(p->fd, chunk, room);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0) {
        if (p->kind == 'S' && got == 0)
            answer(p, p->done);
        leave(p);
        return;
    }
    if (p->kind == 'S')
        p->done += (u64)got;
    else if (p->kind == 'F')
        filed(p, got);
    else if (p->kind == 'E' && write(p->fd, chunk, (size_t)got) != got)
        leave(p);
}

static void writable(struct peer *p)
{
    for (int i = 0; i < 8; i++) {
        if (now_ns() >= p->until) {
            leave(p);
            return;
        }
        if (write(p->fd, chunk, sizeof chunk) < 0) {
            if (errno != EAGAIN)
                leave(p);
            return;
        }
    }
}

static void take(int listener)
{
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct peer *p = calloc(1, sizeof *p);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = p};
        p->fd = fd, p->file = -1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    }
}

static void count(const struct mark *m)
{
    u32 seq = ntohl(m->seq), id = ntohl(m->run);
    if (id != run.run) {
        memset(&run, 0, sizeof run);
        run.run = id, run.first = now_ns();
    }
    if (seq >= MOST_PACKETS)
        return;
    run.last = now_ns();
    if (run.seen[seq / 8] & 1 << seq % 8) {
        run.twice++;
        return;
    }
    run.seen[seq / 8] |= (unsigned char)(1 << seq % 8);
    run.received++;
    if (seq < run.highest)
        run.late++;
    else
        run.highest = seq;
}

#define BATCH 64
static void datagrams(int fd)
{
    static char room[BATCH][9216];
    static union address from[BATCH];
    struct mmsghdr got[BATCH];
    struct iovec parts[BATCH];
    memset(got, 0, sizeof got);
    for (int i = 0; i < BATCH; i++) {
        parts[i] = (struct iovec){room[i], sizeof room[i]};
        got[i].msg_hdr = (struct msghdr){.msg_name = &from[i], .msg_namelen = sizeof from[i], .msg_iov = &parts[i], .msg_iovlen = 1};
    }
    int n = recvmmsg(fd, got, BATCH, MSG_DONTWAIT, NULL);
    for (int i = 0; i < n; i++) {
        struct mark *m = (struct mark *)room[i];
        if (got[i].msg_len < sizeof *m)
            continue;
        if (m->kind == htonl(MAGIC | 'D'))
            count(m);
        else if (m->kind == htonl(MAGIC | 'E'))
            sendto(fd, room[i], got[i].msg_len, 0, &from[i].any, got[i].msg_hdr.msg_namelen);
        else if (m->kind == htonl(MAGIC | 'Q')) {
            int known = m->run == htonl(run.run);
            struct counts c = {{htonl(MAGIC | 'R'), m->run, m->seq}, known ? htonl(run.received) : 0,
                               known ? htonl(run.twice) : 0, known ? htonl(run.late) : 0,
                               known ? htobe64(run.last - run.first) : 0};
            sendto(fd, &c, sizeof c, 0, &from[i].any, got[i].msg_hdr.msg_namelen);
        }
    }
}

static int bound(int kind, int port)
{
    int fd = socket(AF_INET6, kind | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1, off = 0, room = 4 << 20;
    struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
    setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (kind == SOCK_DGRAM)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
    if (bind(fd, (struct sockaddr *)&any, sizeof any) || (kind == SOCK_STREAM && listen(fd, 4096)))
        die("bind");
    return fd;
}

static void join(int fd, const char *group, const char *on)
{
    char names[4096];
    snprintf(names, sizeof names, "%s", on);
    for (char *name = strtok(names, ","); name; name = strtok(NULL, ",")) {
        struct ip_mreqn wish = {0};
        if (!inet_aton(group, &wish.imr_multiaddr) || !inet_aton(name, &wish.imr_address)
            || setsockopt(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &wish, sizeof wish))
            die("group");
    }
}

/* Listen on *port* for *life* seconds; returns to the caller's parent as soon as it listens. */
int serve(int port, int life, const char *group, const char *on)
{
    struct rlimit files = {8192, 8192};
    setrlimit(RLIMIT_NOFILE, &files);
    int listener = bound(SOCK_STREAM, port), udp = bound(SOCK_DGRAM, port);
    if (group)
        join(udp, group, on);
    pid_t child = fork();
    if (child < 0)
        die("fork");
    if (child > 0) {
        printf("{\"pid\": %d}\n", child);
        return 0;
    }
    setsid();
    int nowhere = open("/dev/null", O_RDWR);
    for (int i = 0; i < 3; i++)
        dup2(nowhere, i);
    alarm((unsigned)life);
    poller = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event first = {.events = EPOLLIN, .data.ptr = &listener}, second = {.events = EPOLLIN, .data.ptr = &udp};
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &first);
    epoll_ctl(poller, EPOLL_CTL_ADD, udp, &second);
    for (;;) {
        struct epoll_event ready[1];    /* one by one: an event must not name a peer that has just left */
        if (epoll_wait(poller, ready, 1, -1) < 1)
            continue;
        if (ready->data.ptr == &listener)
            take(listener);
        else if (ready->data.ptr == &udp)
            datagrams(udp);
        else if (ready->events & EPOLLIN)
            readable(ready->data.ptr);
        else if (ready->events & EPOLLOUT)
            writable(ready->data.ptr);
        else
            leave(ready->data.ptr);
    }
}
