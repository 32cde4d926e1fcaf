/* The least that serving a compressed qcow2 by NBD costs: what benches/first-pass compares servers with.
 *
 * usage: bare-decoder SOCKET IMAGE [CACHE]
 *
 * It knows qcow2 whose compressed clusters are zstd's, one file, one thread per connection that does all there is to do for
 * it, and nothing of other formats, backing files, damage, limits, errors, slow clients or coming to an end in order. All L2
 * tables are in memory before the first client comes. Clusters in a request that are compressed are decoded by libzstd in one
 * call each, into memory that is used again, and leave from there, or are written to the new file CACHE and leave from it by
 * sendfile(2); so do clusters that are stored, from the image. It must not be used for anything else. */

#define _GNU_SOURCE
#include "bare.h"
#include <fcntl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <zstd.h>

enum { ROOM = 16 << 10, LONGEST = 2 << 20 };

static int file, cache = -1;
static uint32_t cluster_bits;
/* The L2 entry of each cluster of the disk. */
static uint64_t *entries;

static uint64_t cluster_size(void) {
    return (uint64_t)1 << cluster_bits;
}

/* Reads the tables; whether the image is one that this knows. */
static int load(void) {
    unsigned char header[112];
    if (pread(file, header, sizeof header, 0) != sizeof header || memcmp(header, "QFI\xfb\0\0\0\3", 8) || header[104] != 1)
        return 0;
    uint64_t l1_at;
    memcpy(&cluster_bits, header + 20, 4), memcpy(&size, header + 24, 8), memcpy(&l1_at, header + 40, 8);
    cluster_bits = be32toh(cluster_bits), size = be64toh(size), l1_at = be64toh(l1_at);
    uint64_t clusters = (size + cluster_size() - 1) >> cluster_bits, in_table = cluster_size() / 8;
    uint64_t tables = (clusters + in_table - 1) / in_table;
    entries = calloc(tables, cluster_size());
    for (uint64_t n = 0; entries && n < tables; n++) {
        uint64_t table;
        if (pread(file, &table, 8, (off_t)(l1_at + 8 * n)) != 8)
            return 0;
        table = be64toh(table) & 0x00fffffffffffe00;
        ssize_t length = (ssize_t)cluster_size();
        if (table && pread(file, entries + n * in_table, (size_t)length, (off_t)table) != length)
            return 0;
    }
    for (uint64_t n = 0; entries && n < tables * in_table; n++)
        entries[n] = be64toh(entries[n]);
    return entries != NULL;
}

/* Decodes the cluster of `entry` into `out`. */
static int decode(ZSTD_DCtx *decoder, uint64_t entry, char *stored, char *out) {
    uint32_t shift = 62 - (cluster_bits - 8);
    uint64_t at = entry & (((uint64_t)1 << shift) - 1), sectors = (entry >> shift & (((uint64_t)1 << (62 - shift)) - 1)) + 1;
    ssize_t length = pread(file, stored, sectors * 512 - (at & 511), (off_t)at);
    if (length <= 0)
        return 0;
    size_t frame = ZSTD_findFrameCompressedSize(stored, (size_t)length);
    if (ZSTD_isError(frame))
        return 0;
    return ZSTD_decompressDCtx(decoder, out, cluster_size(), stored, frame) == cluster_size();
}

/* Sends what `from` has at `at`. */
static int send_file(int client, int from, off_t at, uint64_t length) {
    while (length) {
        ssize_t sent = sendfile(client, from, &at, length);
        if (sent <= 0)
            return 0;
        length -= (uint64_t)sent;
    }
    return 1;
}

/* Answers a READ of whole clusters; `out` begins with the reply's header, and has room for the data. */
static int answer(int client, ZSTD_DCtx *decoder, char *stored, char *out, uint64_t offset, uint32_t length) {
    size_t ready = 16;
    for (uint32_t done = 0; done < length;) {
        uint64_t entry = entries[(offset + done) >> cluster_bits], begin = offset + done, run = 0;
        if (entry >> 62 & 1) {
            size_t head = ready;
            for (; done < length && entries[(offset + done) >> cluster_bits] >> 62 & 1; done += (uint32_t)cluster_size()) {
                if (!decode(decoder, entries[(offset + done) >> cluster_bits], stored, out + ready))
                    return 0;
                ready += cluster_size(), run += cluster_size();
            }
            if (cache < 0)
                continue;
            if (pwrite(cache, out + head, run, (off_t)begin) != (ssize_t)run || !put(client, out, head)
                || !send_file(client, cache, (off_t)begin, run))
                return 0;
        } else {
            for (; done < length && entries[(offset + done) >> cluster_bits] == entry + run; done += (uint32_t)cluster_size())
                run += cluster_size();
            off_t at = (off_t)(entry & 0x00fffffffffffe00);
            if (!at || !put(client, out, ready) || !send_file(client, file, at, run))
                return 0;
        }
        ready = 0;
    }
    return put(client, out, ready);
}

static void *serve(void *argument) {
    int client = (int)(intptr_t)argument;
    char *in = malloc(ROOM), *stored = malloc(2 * cluster_size()), *out = malloc(16 + LONGEST);
    ZSTD_DCtx *decoder = ZSTD_createDCtx();
    widen(client);
    size_t filled = 0;
    for (int on = in && stored && out && decoder && negotiate(client); on;) {
        ssize_t received = read(client, in + filled, ROOM - filled);
        if (received <= 0)
            break;
        filled += (size_t)received;
        size_t at = 0;
        for (; on && at + REQUEST <= filled; at += REQUEST) {
            uint16_t command;
            uint64_t offset;
            uint32_t length;
            memcpy(&command, in + at + 6, 2), memcpy(&offset, in + at + 16, 8), memcpy(&length, in + at + 24, 4);
            offset = be64toh(offset), length = be32toh(length);
            memcpy(out, "\x67\x44\x66\x98\0\0\0\0", 8), memcpy(out + 8, in + at + 8, 8);
            on = command == 0 && length <= LONGEST && (offset | length) % cluster_size() == 0
                && answer(client, decoder, stored, out, offset, length);
        }
        memmove(in, in + at, filled -= at);
    }
    close(client);
    ZSTD_freeDCtx(decoder);
    free(in), free(stored), free(out);
    return NULL;
}

int main(int count, char **arguments) {
    if (count == 4)
        cache = open(arguments[3], O_RDWR | O_CREAT | O_EXCL, 0600);
    if (count < 3 || count > 4 || (count == 4 && cache < 0) || (file = open(arguments[2], O_RDONLY)) < 0 || !load()) {
        fprintf(stderr, "usage: bare-decoder SOCKET IMAGE [CACHE]\nThe image is a qcow2 that is compressed with zstd.\n");
        return 2;
    }
    return serve_all(arguments[1], serve);
}
