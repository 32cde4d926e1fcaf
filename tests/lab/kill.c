/* Loaded into smctl by LD_PRELOAD, kills it with SIGKILL at point number $KILL_AT of those called $KILL_NAME, and appends the
 * name of every point up to there to the file $KILL_LOG. With $KILL_LATER it is held there for so many milliseconds first,
 * in which the programs that it has started go on.
 *
 * A point is just before anything that others could see: a change in device-mapper, a sync of the records, a link or
 * state file, a program that is started (LVM to change something, the server), a request to the server, the end of the
 * program. So it is also just after the one before. Programs and requests have a second point, when they are under way.
 * What only looks is no point, and neither are the programs that smctl starts.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

static atomic_int points;
static atomic_bool asked;
static int kill_at, kill_later, names;
static const char *kill_name;
static pid_t self;

/* What is called in the end. Looked up before anybody forks, for a child may not ask the loader for anything. */
#define CALLS(what) \
  what(ioctl) what(fsync) what(fdatasync) what(symlink) what(rename) what(unlink) what(posix_spawnp) what(write) \
  what(writev) what(send) what(read) what(recv)
#define DECLARE(name) static __typeof__(&name) real_##name;
#define FIND(name) real_##name = (__typeof__(&name))dlsym(RTLD_NEXT, #name);
CALLS(DECLARE)

__attribute__((constructor)) static void begin(void) {
  CALLS(FIND)
  self = getpid();
  kill_at = atoi(getenv("KILL_AT"));
  kill_name = getenv("KILL_NAME");
  kill_later = atoi(getenv("KILL_LATER"));
  names = open(getenv("KILL_LOG"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  unsetenv("LD_PRELOAD");
}

static void point(const char *name) {
  /* A guardian is a fork of the program, and must outlive it. */
  if (getpid() != self) return;
  dprintf(names, "%s\n", name);
  if (!strcmp(name, kill_name) && ++points == kill_at) {
    usleep(kill_later * 1000);
    kill(self, SIGKILL);
    for (;;) pause();
  }
}

__attribute__((destructor)) static void end(void) { point("end"); }

int ioctl(int fd, unsigned long request, ...) {
  static const char *const commands[] = {
    [3] = "create a device", [4] = "remove a device", [6] = "suspend or resume", [9] = "load a table", [14] = "message",
  };
  va_list list;
  va_start(list, request);
  void *argument = va_arg(list, void *);
  va_end(list);
  unsigned command = _IOC_NR(request);
  if (_IOC_TYPE(request) == 0xfd && command < sizeof commands / sizeof *commands && commands[command])
    point(commands[command]);
  return real_ioctl(fd, request, argument);
}

int fsync(int fd) { return point("sync"), real_fsync(fd); }
int fdatasync(int fd) { return point("sync"), real_fdatasync(fd); }
int symlink(const char *target, const char *path) { return point("link"), real_symlink(target, path); }
int rename(const char *from, const char *to) { return point("rename"), real_rename(from, to); }
int unlink(const char *path) { return point("unlink"), real_unlink(path); }

int posix_spawnp(pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attributes,
                 char *const arguments[], char *const environment[]) {
  const char *what = arguments[1] ? arguments[1] : file;
  bool looks = !strcmp(what, "fullreport") || !strcmp(what, "version") || !strcmp(file, "wipefs") ||
              !strcmp(file, "dd");
  if (!looks) point(what);
  int result = real_posix_spawnp(pid, file, actions, attributes, arguments, environment);
  if (!looks && result == 0) point("program under way");
  return result;
}

/* Whether the other end is a server's named socket, and not the runtime's own. */
static bool is_server(int fd) {
  struct sockaddr_un peer;
  socklen_t length = sizeof peer;
  return getpeername(fd, (struct sockaddr *)&peer, &length) == 0 && peer.sun_family == AF_UNIX &&
         length > sizeof peer.sun_family;
}

static void written(int fd, const void *bytes, size_t length) {
  bool change = (length > 4 && !memcmp(bytes, "POST", 4)) || (length > 6 && !memcmp(bytes, "DELETE", 6));
  if (change && is_server(fd)) {
    point("request");
    asked = true;
  }
}

ssize_t write(int fd, const void *bytes, size_t length) {
  written(fd, bytes, length);
  return real_write(fd, bytes, length);
}

ssize_t writev(int fd, const struct iovec *pieces, int count) {
  if (count > 0) written(fd, pieces->iov_base, pieces->iov_len);
  return real_writev(fd, pieces, count);
}

ssize_t send(int fd, const void *bytes, size_t length, int flags) {
  written(fd, bytes, length);
  return real_send(fd, bytes, length, flags);
}

static void awaited(int fd) {
  if (asked && is_server(fd)) {
    asked = false;
    point("request under way");
  }
}

ssize_t read(int fd, void *bytes, size_t length) { return awaited(fd), real_read(fd, bytes, length); }
ssize_t recv(int fd, void *bytes, size_t length, int flags) { return awaited(fd), real_recv(fd, bytes, length, flags); }
