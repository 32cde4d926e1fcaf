//! A guest whose device is suspended waits, and must not wait for ever because the process that suspended it was killed.
//!
//! So before it suspends a device, it forks a guardian, which waits on a pipe for the process to end, however that comes
//! about, and lets the device go on. What the process was writing has been written by then: the kernel closes its files
//! only after its last system call has returned. The guardian holds the same lock files open, so nobody else has the lock
//! of the SR before the guardian is done.

use super::{DmError, DmResult, Guard};
use std::io::{self, PipeWriter};
use std::os::fd::{AsRawFd, RawFd};

/// The pipe's end in this process; the guardian acts when it is closed.
struct Guardian {
    pipe: Option<PipeWriter>,
    child: libc::pid_t,
}

impl Guard for Guardian {}

/// Forks a guardian that sends `request` as the ioctl `code` to `control` when this process ends, or drops the guard.
pub(super) fn fork(
    name: &str,
    control: RawFd,
    code: libc::Ioctl,
    mut request: Vec<u8>,
) -> DmResult<Box<dyn Guard>> {
    let failed = |e: io::Error| DmError {
        request: format!("guard {name}"),
        errno: e.raw_os_error().unwrap_or(libc::EAGAIN),
    };
    let (read, write) = io::pipe().map_err(failed)?;
    let (from, to) = (read.as_raw_fd(), write.as_raw_fd());
    // SAFETY: the child is a copy of this thread alone, so it must not touch what another thread may have locked: it
    // allocates nothing, makes system calls only, and ends by `_exit`. `request` is its own copy, begins with a
    // `struct dm_ioctl` whose `data_size` is its length, and was made before the fork.
    let child = unsafe {
        match libc::fork() {
            0 => {
                // Out of reach of a terminal's signals.
                libc::setsid();
                libc::close(to);
                let mut byte = 0u8;
                while libc::read(from, std::ptr::addr_of_mut!(byte).cast(), 1) < 0 {}
                libc::ioctl(control, code, request.as_mut_ptr());
                libc::_exit(0)
            }
            child => child,
        }
    };
    if child < 0 {
        return Err(failed(io::Error::last_os_error()));
    }
    Ok(Box::new(Guardian { pipe: Some(write), child }))
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.pipe.take());
        // SAFETY: waits for a child of ours, without a place for its status.
        while unsafe { libc::waitpid(self.child, std::ptr::null_mut(), 0) } < 0
            && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
        {}
    }
}
