/* A client that reads at random by NBD and takes as little time for it as can be, for benches/serve.
 *
 * usage: reader SOCKET DEPTH CONNECTIONS SECONDS BLOCK [CERTIFICATES]
 *
 * On each connection, which has a thread of its own, DEPTH requests for BLOCK bytes are under way: it takes all answers
 * that have come with one system call, and asks for as many more with another one. So server and client meet in larger and
 * larger batches, as far as the server makes use of that; fio takes every header by itself, and asks again after each
 * answer. With CERTIFICATES, a directory with ca-cert.pem, connections are encrypted, by OpenSSL. Prints the number of
 * requests that were answered, and per second. Any error of a server ends it. */

#include <endian.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { REQUEST = 28, MOST = 1024, LARGEST = 32 << 20, RECEIVE = 256 << 10 };
enum { SIMPLE = 0x67446698, CHUNK = 0x668e33ef, DONE = 1, NONE = 0, DATA = 1, HOLE = 2 };

static const char *path;
static unsigned depth;
static uint32_t block;
static double seconds;
static SSL_CTX *tls; /* if connections are encrypted */

struct server {
    int socket;
    SSL *tls; /* once it is encrypted */
};

static _Noreturn void fail(const char *what) {
    perror(what);
    exit(1);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void put(struct server *server, const void *from, size_t length) {
    for (size_t done = 0; done < length;) {
        const char *left = (const char *)from + done;
        ssize_t sent = server->tls ? SSL_write(server->tls, left, (int)(length - done))
                                   : write(server->socket, left, length - done);
        if (sent <= 0)
            fail("cannot send");
        done += (size_t)sent;
    }
}

/* At least one byte, and what else has come, up to so many. */
static size_t take(struct server *server, uint8_t *to, size_t most) {
    size_t taken = 0;
    do {
        ssize_t received = server->tls ? SSL_read(server->tls, to + taken, (int)(most - taken))
                                       : read(server->socket, to + taken, most - taken);
        if (received <= 0)
            fail("cannot receive");
        taken += (size_t)received;
    } while (server->tls && SSL_has_pending(server->tls) && taken < most);
    return taken;
}

static void get(struct server *server, void *to, size_t length) {
    for (size_t done = 0; done < length;)
        done += take(server, (uint8_t *)to + done, length - done);
}

static uint64_t number(const uint8_t *at, int bytes) {
    uint64_t value = 0;
    while (bytes--)
        value = value << 8 | *at++;
    return value;
}

/* Asks for one option; returns its last reply's type, and the disk's size if one told of it. */
static uint32_t option(struct server *server, uint32_t which, const void *data, uint32_t length, uint64_t *size) {
    struct __attribute__((packed)) { uint64_t magic; uint32_t which, length; }
        asked = {htobe64(0x49484156454f5054), htobe32(which), htobe32(length)};
    put(server, &asked, sizeof asked);
    put(server, data, length);
    for (;;) {
        uint8_t header[20], info[4096];
        get(server, header, sizeof header);
        uint32_t type = (uint32_t)number(header + 12, 4), bytes = (uint32_t)number(header + 16, 4);
        if (bytes > sizeof info)
            fail("a reply is too long");
        get(server, info, bytes);
        if (type != 3) /* all but NBD_REP_INFO is the last */
            return type;
        if (bytes == 12 && number(info, 2) == 0)
            *size = number(info + 2, 8);
    }
}

/* Connects to the default export, with structured replies if the server has them. */
static struct server begin(uint64_t *size) {
    struct server server = {.socket = socket(AF_UNIX, SOCK_STREAM, 0)};
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    uint8_t greeting[18];
    if (server.socket < 0 || connect(server.socket, (struct sockaddr *)&address, sizeof address))
        fail("cannot connect");
    get(&server, greeting, sizeof greeting);
    put(&server, "\0\0\0\3", 4);
    if (tls) {
        SSL *encrypted = SSL_new(tls);
        if (option(&server, 5, NULL, 0, size) != 1 || !encrypted || !SSL_set1_host(encrypted, "localhost") ||
            !SSL_set_tlsext_host_name(encrypted, "localhost") || !SSL_set_fd(encrypted, server.socket) ||
            SSL_connect(encrypted) != 1)
            fail("cannot encrypt");
        server.tls = encrypted;
    }
    option(&server, 8, NULL, 0, size);
    if (option(&server, 7, "\0\0\0\0\0\0", 6, size) != 1 || *size < block)
        fail("there is no such export");
    return server;
}

/* One request more in OUT. */
static void ask(uint8_t *out, uint64_t *state, uint64_t blocks) {
    *state ^= *state >> 12, *state ^= *state << 25, *state ^= *state >> 27; /* xorshift64*, from Vigna */
    uint64_t offset = htobe64((*state * 0x2545f4914f6cdd1du) % blocks * block);
    uint32_t length = htobe32(block);
    memcpy(out, "\x25\x60\x95\x13\0\0\0\0\0\0\0\0\0\0\0\0", 16);
    memcpy(out + 16, &offset, 8), memcpy(out + 24, &length, 4);
}

/* How long the reply at AT is, of which LEFT bytes are there, or 0 if that is not all; what it brings. */
static size_t reply(const uint8_t *at, size_t left, uint64_t *bytes, unsigned *answered) {
    if (left < 16)
        return 0;
    if (number(at, 4) == SIMPLE) {
        if (number(at + 4, 4))
            fail("the server says that it cannot");
        if (left < 16 + block)
            return 0;
        *bytes += block, ++*answered;
        return 16 + block;
    }
    if (number(at, 4) != CHUNK)
        fail("this is no reply");
    if (left < 20)
        return 0;
    uint64_t type = number(at + 6, 2), length = number(at + 16, 4);
    if (length > block + 8)
        fail("a reply is too long");
    if (left < 20 + length)
        return 0;
    if (type == DATA && length > 8)
        *bytes += length - 8;
    else if (type == HOLE && length == 12)
        *bytes += number(at + 28, 4);
    else if (type != NONE)
        fail("the server says that it cannot");
    *answered += number(at + 4, 2) & DONE;
    return 20 + (size_t)length;
}

static void *read_on(void *seed) {
    uint64_t size = 0, state = (uint64_t)(uintptr_t)seed * 0x9e3779b97f4a7c15u, bytes = 0, *total = calloc(1, sizeof *total);
    struct server server = begin(&size);
    size_t room = (size_t)depth * (block + REQUEST) + RECEIVE;
    uint8_t *in = malloc(room), *out = malloc((size_t)depth * REQUEST);
    if (!in || !out || !total)
        fail("no memory");
    size_t filled = 0;
    unsigned under_way = 0, answered = depth;
    double end = now() + seconds;
    for (;;) {
        if (now() < end) {
            for (unsigned i = 0; i < answered; i++)
                ask(out + i * REQUEST, &state, size / block);
            put(&server, out, (size_t)answered * REQUEST);
            under_way += answered;
        }
        if (!under_way)
            break;
        filled += take(&server, in + filled, room - filled);
        size_t at = 0;
        answered = 0;
        for (size_t length; (length = reply(in + at, filled - at, &bytes, &answered)); at += length)
            ;
        filled -= at;
        if (at)
            memmove(in, in + at, filled);
        *total += answered, under_way -= answered;
    }
    put(&server, "\x25\x60\x95\x13\0\0\0\2\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", REQUEST);
    if (bytes != *total * block)
        fail("the replies have another number of bytes");
    return total;
}

int main(int count, char **arguments) {
    pthread_t threads[MOST];
    unsigned connections = count >= 6 ? (unsigned)atoi(arguments[3]) : 0;
    if (connections < 1 || connections > MOST || count > 7 || atoi(arguments[2]) < 1 || atoi(arguments[2]) > MOST ||
        atoi(arguments[5]) < 1 || atoi(arguments[5]) > LARGEST) {
        fprintf(stderr, "usage: reader SOCKET DEPTH CONNECTIONS SECONDS BLOCK [CERTIFICATES]\n");
        return 2;
    }
    path = arguments[1], depth = (unsigned)atoi(arguments[2]), seconds = atof(arguments[4]), block = (uint32_t)atoi(arguments[5]);
    if (count == 7) {
        char authority[4096];
        snprintf(authority, sizeof authority, "%s/ca-cert.pem", arguments[6]);
        tls = SSL_CTX_new(TLS_client_method());
        if (!tls || SSL_CTX_load_verify_locations(tls, authority, NULL) != 1)
            fail(authority);
        SSL_CTX_set_verify(tls, SSL_VERIFY_PEER, NULL);
        SSL_CTX_set_read_ahead(tls, 1);
        SSL_CTX_set_default_read_buffer_len(tls, RECEIVE);
    }
    for (unsigned i = 0; i < connections; i++)
        if (pthread_create(&threads[i], NULL, read_on, (void *)(uintptr_t)(i + 1)))
            fail("cannot start a thread");
    uint64_t total = 0;
    for (unsigned i = 0; i < connections; i++) {
        uint64_t *mine;
        pthread_join(threads[i], (void **)&mine);
        total += *mine;
    }
    printf("%lu %.0f\n", total, (double)total / seconds);
}
