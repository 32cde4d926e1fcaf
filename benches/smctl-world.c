/* Loaded into smctl by LD_PRELOAD: the device-mapper of a host with one SR.
 *
 * The volumes $WORLD_META, $WORLD_POOL and $WORLD_POOL_tmeta are there (as device-mapper names them), with the numbers 0, 1
 * and 2, and the pool says $WORLD_STATUS. Nothing else is.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <linux/dm-ioctl.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

static int (*real_ioctl)(int, unsigned long, ...);

struct volume {
  char name[DM_NAME_LEN];
  const char *kind, *status;
};
static struct volume volumes[3];

__attribute__((constructor)) static void begin(void) {
  real_ioctl = dlsym(RTLD_NEXT, "ioctl");
  const char *pool = getenv("WORLD_POOL");
  snprintf(volumes[0].name, DM_NAME_LEN, "%s", getenv("WORLD_META"));
  snprintf(volumes[1].name, DM_NAME_LEN, "%s", pool);
  snprintf(volumes[2].name, DM_NAME_LEN, "%s_tmeta", pool);
  volumes[0].kind = volumes[2].kind = "linear";
  volumes[0].status = volumes[2].status = "";
  volumes[1].kind = "thin-pool";
  volumes[1].status = getenv("WORLD_STATUS");
}

static size_t padded(size_t length) { return (length + 7) & ~(size_t)7; }

static int names(struct dm_ioctl *io) {
  char *at = (char *)io + io->data_start;
  for (int number = 0; number < 3; number++) {
    struct dm_name_list *entry = (struct dm_name_list *)at;
    size_t length = padded(offsetof(struct dm_name_list, name) + strlen(volumes[number].name) + 1);
    entry->dev = 253 << 8 | number;
    entry->next = number < 2 ? length : 0;
    strcpy(entry->name, volumes[number].name);
    at += length;
  }
  io->data_size = at - (char *)io;
  return 0;
}

static int table(struct dm_ioctl *io) {
  for (int number = 0; number < 3; number++) {
    if (strcmp(io->name, volumes[number].name)) continue;
    struct dm_target_spec *spec = (struct dm_target_spec *)((char *)io + io->data_start);
    const char *text = io->flags & DM_STATUS_TABLE_FLAG ? "" : volumes[number].status;
    memset(spec, 0, sizeof *spec);
    spec->length = 1 << 20;
    strcpy(spec->target_type, volumes[number].kind);
    strcpy((char *)(spec + 1), text);
    spec->next = padded(sizeof *spec + strlen(text) + 1);
    io->dev = 253 << 8 | number;
    io->open_count = 1;
    io->target_count = 1;
    io->flags = DM_ACTIVE_PRESENT_FLAG;
    strcpy(io->uuid, "LVM-world");
    return 0;
  }
  errno = ENXIO;
  return -1;
}

int ioctl(int fd, unsigned long request, ...) {
  va_list list;
  va_start(list, request);
  void *argument = va_arg(list, void *);
  va_end(list);
  if (_IOC_TYPE(request) != DM_IOCTL) return real_ioctl(fd, request, argument);
  switch (_IOC_NR(request)) {
    case DM_LIST_DEVICES_CMD: return names(argument);
    case DM_TABLE_STATUS_CMD: return table(argument);
    default: errno = EINVAL; return -1;
  }
}
