/* What the bare servers share: the negotiation, a client's socket, and a thread for each client. */

#include <endian.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { REQUEST = 28 };

/* Of the disk. */
static uint64_t size;

static int put(int client, const void *from, size_t length) {
    for (size_t done = 0; done < length;) {
        ssize_t sent = write(client, (const char *)from + done, length - done);
        if (sent <= 0)
            return 0;
        done += (size_t)sent;
    }
    return 1;
}

static int get(int client, void *to, size_t length) {
    return !length || recv(client, to, length, MSG_WAITALL) == (ssize_t)length;
}

/* The fixed newstyle negotiation; whether transmission begins. */
static int negotiate(int client) {
    if (!put(client, "NBDMAGICIHAVEOPT\0\3", 18) || !get(client, &(uint32_t){0}, 4))
        return 0;
    for (;;) {
        struct __attribute__((packed)) { uint64_t magic; uint32_t number, length; } option;
        struct __attribute__((packed)) { uint64_t magic; uint32_t number, type, length; uint16_t info; uint64_t size; uint16_t flags; }
            reply = {htobe64(0x3e889045565a9), 0, 0, 0, 0, htobe64(size), htobe16(1 | 2 | 0x100)};
        char data[4096];
        if (!get(client, &option, 16) || be32toh(option.length) > sizeof data || !get(client, data, be32toh(option.length)))
            return 0;
        reply.number = option.number;
        if (be32toh(option.number) != 7) { /* all but NBD_OPT_GO is NBD_REP_ERR_UNSUP */
            reply.type = htobe32(0x80000001);
            if (!put(client, &reply, 20))
                return 0;
            continue;
        }
        reply.type = htobe32(3), reply.length = htobe32(12);
        if (!put(client, &reply, 32))
            return 0;
        reply.type = htobe32(1), reply.length = 0;
        return put(client, &reply, 20);
    }
}

/* Room for what the client has not taken yet. */
static void widen(int client) {
    int room = 512 << 10;
    setsockopt(client, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    setsockopt(client, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room);
}

/* Has `serve` answer each client that comes, for ever. */
static int serve_all(const char *path, void *(*serve)(void *)) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    signal(SIGPIPE, SIG_IGN);
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 64)) {
        perror(path);
        return 1;
    }
    for (;;) {
        pthread_t thread;
        int client = accept(listener, NULL, NULL);
        if (client >= 0 && !pthread_create(&thread, NULL, serve, (void *)(intptr_t)client))
            pthread_detach(thread);
    }
}
