/* What both ends of kvmnet-load share: the words that they exchange, clocks, and a histogram of times. */
#ifndef KVMNET_LOAD_H
#define KVMNET_LOAD_H
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

typedef uint64_t u64;
typedef uint32_t u32;

#define CHUNK (256 << 10)
#define MOST_PACKETS (1u << 22)
#define MOST_FILE (256ull << 20)
#define LONGEST_US 60000000ull

/* First bytes of a connection. Kinds: S sink, C source (amount: microseconds), E echo, F file (amount: bytes),
 * U processor time, N nothing but an answer. All but E are answered with 8 bytes. */
struct request { char kind; char unused[7]; u64 amount; } __attribute__((packed));

/* First bytes of a datagram: D data, E echo, Q how many of this run came, R the answer to that. */
#define MAGIC 0x6b766d00u
struct mark { u32 kind, run, seq; } __attribute__((packed));
struct counts { struct mark mark; u32 received, twice, late; u64 span_ns; } __attribute__((packed));

union address { struct sockaddr any; struct sockaddr_in v4; struct sockaddr_in6 v6; };

/* The histogram of kvmnet.bench.histogram: 128 steps per power of two, so within 0.8 per cent. */
#define STEPS 128
#define BUCKETS (STEPS * 36)

static inline u32 bucket(u64 value)
{
    if (value < STEPS)
        return (u32)value;
    u32 shift = 63 - (u32)__builtin_clzll(value) - 7;
    u32 found = STEPS * (shift + 1) + (u32)(value >> shift) - STEPS;
    return found < BUCKETS ? found : BUCKETS - 1;
}

u64 now_ns(void);
u64 busy_us(void);
u64 mix(u64 sum, const char *data, size_t length);
void die(const char *what);
socklen_t parse(const char *text, int port, union address *out);
int serve(int port, int life, const char *group, const char *on);
#endif
