/* Lets a user-mode Linux kernel older than 6.13 run on a processor with a large register state (AMX, say).
 *
 * Such a kernel gives its processes their floating point registers with PTRACE_SETREGSET and a buffer of a size that
 * was fixed when it was built. A host takes a buffer of its own full size only (EFAULT otherwise, and the kernel
 * inside panics before it has run anything). Preloaded, this ptrace() lengthens a short buffer with zeroes: the
 * components there belong to features that a process has to ask its kernel for, and the kernel inside has none of
 * them to give, so their bits in the header of the area are clear and the zeroes are never read.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { LARGEST = 65536 };

long ptrace(enum __ptrace_request request, ...) {
    static __thread char area[LARGEST];
    static __thread size_t full;
    va_list arguments;
    va_start(arguments, request);
    long pid = va_arg(arguments, long), address = va_arg(arguments, long), data = va_arg(arguments, long);
    va_end(arguments);

    /* The kernel returns what is peeked at through the pointer; the library function returns it as its value. */
    if (request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER) {
        long word;
        return syscall(SYS_ptrace, request, pid, address, &word) < 0 ? -1 : word;
    }
    if (request != PTRACE_SETREGSET || address != NT_X86_XSTATE)
        return syscall(SYS_ptrace, request, pid, address, data);

    struct iovec given = *(struct iovec *)data;
    if (full == 0) {
        struct iovec probe = { area, LARGEST };
        if (syscall(SYS_ptrace, PTRACE_GETREGSET, pid, address, &probe) < 0)
            return -1;
        full = probe.iov_len;
    }
    if (given.iov_len >= full)
        return syscall(SYS_ptrace, request, pid, address, data);
    memcpy(area, given.iov_base, given.iov_len);
    memset(area + given.iov_len, 0, full - given.iov_len);
    struct iovec whole = { area, full };
    return syscall(SYS_ptrace, request, pid, address, &whole);
}
