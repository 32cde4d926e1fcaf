/* The least that serving a file by NBD costs: what benches/serve compares servers with.
 *
 * usage: bare-server SOCKET FILE
 *
 * It knows one file, one thread per connection, reads, and nothing of identity, limits, errors, slow clients or coming to
 * an end in order: READs of less than 32 KiB are gathered, as many as have come, and leave together; larger ones leave by
 * sendfile(2). No server that does the same on top of sockets can be cheaper. It must not be used for anything else. */

#define _GNU_SOURCE
#include "bare.h"
#include <fcntl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>

enum { GATHER = 32 << 10, ROOM = 16 << 10, OUT = ROOM / REQUEST * (GATHER + 16) };

static int file;

static void *serve(void *argument) {
    int client = (int)(intptr_t)argument;
    char *in = malloc(ROOM), *out = malloc(OUT);
    widen(client);
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
    struct stat status;
    if (count != 3 || (file = open(arguments[2], O_RDONLY)) < 0 || fstat(file, &status)) {
        fprintf(stderr, "usage: bare-server SOCKET FILE\n");
        return 2;
    }
    size = (uint64_t)status.st_size;
    return serve_all(arguments[1], serve);
}
