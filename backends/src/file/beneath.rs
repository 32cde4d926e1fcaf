//! Opening a name below a directory without leaving the directory.

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, Result};
use std::os::fd::OwnedFd;
use std::path::Path;

/// Opens `name`, which is relative and has no `..`, below `directory`. What would lead outside is
/// [`Errno::XDEV`] or [`Errno::LOOP`].
pub(super) fn open(directory: &Path, name: &Path, flags: OFlags) -> Result<OwnedFd> {
    let directory = rustix::fs::openat(
        CWD,
        directory,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(&directory, name, flags, Mode::empty(), resolve) {
        // No such call before Linux 5.6, and some container runtimes forbid what they do not know.
        Err(Errno::NOSYS | Errno::PERM) => step_by_step(directory, name, flags),
        // A rename in the tree while it was walked; the walk is safe to repeat, but not for ever.
        Err(Errno::AGAIN) => rustix::fs::openat2(&directory, name, flags, Mode::empty(), resolve),
        result => result,
    }
}

/// As [`open`], following no symbolic links at all, for kernels that cannot confine them.
pub(super) fn step_by_step(mut directory: OwnedFd, name: &Path, flags: OFlags) -> Result<OwnedFd> {
    let mut components = name.components().peekable();
    while let Some(component) = components.next() {
        let std::path::Component::Normal(part) = component else { return Err(Errno::XDEV) };
        if components.peek().is_none() {
            return rustix::fs::openat(&directory, part, flags | OFlags::NOFOLLOW, Mode::empty());
        }
        let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        directory = rustix::fs::openat(&directory, part, step, Mode::empty())?;
    }
    Err(Errno::NOENT)
}
