/* Hostile clients of an NBD server on a unix socket, for benches/hostile.
 *
 * usage: hostile-clients SOCKET SIZE RATE SEED
 *
 * RATE clients per second come until SIGTERM, whatever the server makes of them; then their number is printed. SIZE is
 * that of the disk in bytes. A client says one thing, and stays until 64 others have come: most of them are in the
 * middle of something then. In C, because what a hostile client costs this machine is not what is measured. */

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { OPEN = 64 };

static volatile sig_atomic_t stopped;
static uint64_t state;
static uint8_t said[16384];
static size_t length;

static void stop(int number) {
    (void)number;
    stopped = 1;
}

/* xorshift64*, from Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled". */
static uint64_t noise(void) {
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545f4914f6cdd1du;
}

/* VALUE in so many bytes, the highest first. */
static void say(uint64_t value, int bytes) {
    while (bytes--)
        said[length++] = (uint8_t)(value >> (8 * bytes));
}

static void say_noise(size_t bytes) {
    while (bytes--)
        say(noise(), 1);
}

static void say_option(uint64_t number, uint64_t announced) {
    say(0x49484156454f5054u, 8);
    say(number, 4);
    say(announced, 4);
}

/* What a client says when it has been greeted. */
static void negotiate(void) {
    static const uint32_t names[] = {0xffffffff, 5000, 4097, 70};
    size_t data = noise() % 64;
    uint32_t number = (uint32_t)(noise() % 14);
    say(noise() % 4 ? 3 : 0xffff, 4);
    switch (noise() % 6) {
    case 0: say_option(number, 0xffffffff); break;
    case 1: say_option(noise(), data); break;
    case 2: say_option(number, data + 1); break;
    case 3:
        for (int i = 0; i < 100; i++) {
            say_option(number, data);
            say_noise(data);
        }
        break;
    case 4:
        say_option(7, data + 4);
        say(names[noise() % 4], 4);
        break;
    default: data = 200;
    }
    say_noise(data);
}

/* What one says that got as far as an export. */
static void request(uint64_t size) {
    static const uint32_t lengths[] = {0, 1, 4096, 1 << 20, 33 << 20, 0xffffffff};
    say(3, 4);
    say_option(1, 0);
    for (uint64_t left = 1 + noise() % 7; left; left--) {
        uint64_t places[] = {0, 512, size - 1, size, UINT64_MAX, noise()};
        say(noise() % 16 ? 0x25609513 : noise(), 4);
        say(noise() % 64, 2);
        say(noise() % 10, 2);
        say(noise(), 8);
        say(places[noise() % 6], 8);
        say(lengths[noise() % 6], 4);
    }
}

int main(int count, char **arguments) {
    if (count != 5) {
        fprintf(stderr, "usage: hostile-clients SOCKET SIZE RATE SEED\n");
        return 2;
    }
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", arguments[1]);
    uint64_t size = strtoull(arguments[2], NULL, 10), rate = strtoull(arguments[3], NULL, 10);
    state = strtoull(arguments[4], NULL, 10) | 1;
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTERM, stop);
    int sockets[OPEN];
    for (int i = 0; i < OPEN; i++)
        sockets[i] = -1;
    struct timespec next;
    clock_gettime(CLOCK_MONOTONIC, &next);
    unsigned long clients = 0, refused = 0;
    while (!stopped) {
        next.tv_nsec += (long)(1000000000 / rate);
        next.tv_sec += next.tv_nsec / 1000000000;
        next.tv_nsec %= 1000000000;
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
        int *client = &sockets[(clients + refused) % OPEN];
        if (*client >= 0)
            close(*client);
        *client = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (*client < 0 || connect(*client, (struct sockaddr *)&address, sizeof address)) {
            refused++;
            continue;
        }
        length = 0;
        if (noise() % 4)
            negotiate();
        else
            request(size);
        /* What becomes of it is the server's affair. */
        (void)!write(*client, said, length);
        clients++;
        if (noise() % 2) {
            close(*client);
            *client = -1;
        }
    }
    printf("%lu %lu\n", clients, refused);
    return 0;
}
