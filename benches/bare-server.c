/* The least that serving a file by NBD costs: what benches/serve compares servers with.
 *
 * usage: bare-server SOCKET FILE
 *
 * It knows one file, one thread per connection, reads, and nothing of identity, limits, errors, slow clients or coming to
 * an end in order: READs of less than 32 KiB are gathered, as many as have come, and leave together; larger ones leave by
 * sendfile(2). No server that does the same on top of sockets can be cheaper. It must not be used for anything else. */

#define _GNU_SOURCE
#include <endian.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { GATHER = 32 << 10, REQUEST = 28, ROOM = 16 << 10, OUT = ROOM / REQUEST * (GATHER + 16) };

static int file;
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

static void *serve(void *argument) {
    int client = (int)(intptr_t)argument, room = 512 << 10;
    char *in = malloc(ROOM), *out = malloc(OUT);
    setsockopt(client, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    setsockopt(client, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room);
    size_t filled = 0;
    for (int on = in && out && negotiate(client); on;) {
        ssize_t received = read(client, in + filled, ROOM - filled);
        if (received <= 0)
            break;
        filled += (size_t)received;
        size_t at = 0, ready = 0;
        for (; on && at + REQUEST <= filled; at += REQUEST) {
            uint16_t command;
            uint64_t offset;
            uint32_t length;
            memcpy(&command, in + at + 6, 2), memcpy(&offset, in + at + 16, 8), memcpy(&length, in + at + 24, 4);
            if (command != 0) { /* all but NBD_CMD_READ ends it */
                on = 0;
                break;
            }
            offset = be64toh(offset), length = be32toh(length);
            memcpy(out + ready, "\x67\x44\x66\x98\0\0\0\0", 8), memcpy(out + ready + 8, in + at + 8, 8);
            ready += 16;
            if (length < GATHER) {
                on = pread(file, out + ready, length, (off_t)offset) == (ssize_t)length;
                ready += length;
                continue;
            }
            on = put(client, out, ready);
            ready = 0;
            for (off_t from = (off_t)offset; on && length;) {
                ssize_t sent = sendfile(client, file, &from, length);
                on = sent > 0;
                length -= (uint32_t)sent;
            }
        }
        on = on && put(client, out, ready);
        memmove(in, in + at, filled -= at);
    }
    close(client);
    free(in), free(out);
    return NULL;
}

int main(int count, char **arguments) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct stat status;
    if (count != 3 || (file = open(arguments[2], O_RDONLY)) < 0 || fstat(file, &status)) {
        fprintf(stderr, "usage: bare-server SOCKET FILE\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    size = (uint64_t)status.st_size;
    snprintf(address.sun_path, sizeof address.sun_path, "%s", arguments[1]);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 64)) {
        perror("bare-server");
        return 1;
    }
    for (;;) {
        pthread_t thread;
        int client = accept(listener, NULL, NULL);
        if (client >= 0 && !pthread_create(&thread, NULL, serve, (void *)(intptr_t)client))
            pthread_detach(thread);
    }
}
