//! What a server listens on: what it binds, and what systemd passes.

use super::args::Serve;
use crate::daemon::admin_path;
use crate::error::{Error, Result};
use crate::privileges::Owner;
use nbd::Listener;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketType, sockopt};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tokio::net::{TcpListener, UnixListener};

/// Where clients find the server unless told otherwise.
const SOCKET: &str = "/run/thinorigin/nbd.sock";

/// What the server listens on, and what it was given.
#[derive(Default)]
pub(super) struct Sockets {
    /// For NBD clients, each with how it is called.
    pub(super) nbd: Vec<(Listener, String)>,
    /// The control socket and its path.
    pub(super) admin: Option<(UnixListener, PathBuf)>,
    /// Connected sockets that an earlier server left with the service manager.
    pub(super) links: Vec<OwnedFd>,
    /// To be dropped when the server ends.
    pub(super) files: SocketFiles,
}

/// Socket files of ours; removed when this is dropped, so that a server that does not start leaves none either.
#[derive(Default)]
pub(super) struct SocketFiles(Vec<(PathBuf, u64)>);

impl SocketFiles {
    /// Adds the socket just bound at `path`.
    fn add(&mut self, path: PathBuf) {
        let inode = std::fs::symlink_metadata(&path).map_or(0, |file| file.ino());
        self.0.push((path, inode));
    }
}

impl Drop for SocketFiles {
    fn drop(&mut self) {
        for (path, inode) in &self.0 {
            // Another server may have put its own socket there since this one stopped listening.
            if std::fs::symlink_metadata(path).is_ok_and(|file| file.ino() == *inode) {
                // A path that somebody else removed already is as good as removed.
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

impl Sockets {
    /// Takes what systemd passed, and binds what the arguments name.
    pub(super) async fn bind(args: &Serve) -> Result<Self> {
        let mut sockets = Sockets::default();
        let insecure = args.insecure_tcp || args.tls_certificates.is_some();
        sockets.inherit(insecure)?;
        if let Some(address) = &args.admin {
            let path = admin_path(address)?;
            sockets.admin = Some((bind_unix(&path).await?, path.clone()));
            sockets.files.add(path);
        }
        let owner = args.unix_owner.as_deref().map(Owner::parse).transpose()?;
        for path in &args.unix {
            sockets.add_unix(path, args.unix_mode, owner).await?;
        }
        for address in &args.tcp {
            let listener = bind_tcp(address, insecure).await?;
            let local = listener.local_addr().map_or_else(|_| address.clone(), |local| local.to_string());
            sockets.nbd.push((Listener::Tcp(listener), format!("tcp {local}")));
        }
        let none = args.exports.is_empty() && args.config.is_none();
        if sockets.nbd.is_empty() && !(none && sockets.admin.is_some()) {
            sockets.add_unix(Path::new(SOCKET), args.unix_mode, owner).await?;
        }
        Ok(sockets)
    }

    async fn add_unix(&mut self, path: &Path, mode: Option<u32>, owner: Option<Owner>) -> Result<()> {
        let listener = bind_unix(path).await?;
        self.files.add(path.to_owned());
        let failed = |error: std::io::Error| Error::io("cannot be given away", path.display(), &error);
        if let Some(owner) = owner {
            std::os::unix::fs::lchown(path, owner.user, owner.group).map_err(failed)?;
        }
        // Nobody but its owner could connect until here.
        if let Some(mode) = mode {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
        }
        self.nbd.push((Listener::Unix(listener), format!("unix {}", path.display())));
        Ok(())
    }

    /// Takes over sockets passed by systemd (`LISTEN_FDS`). Only if `insecure` may others on the network reach one.
    fn inherit(&mut self, insecure: bool) -> Result<()> {
        let mut passed = listenfd::ListenFd::from_env();
        for index in 0..passed.len() {
            let name = format!("passed socket {index}");
            let fail = |error: std::io::Error| Error::failed(format!("{name} cannot be used: {error}"));
            let Some(fd) = passed.take_raw_fd(index).map_err(fail)? else { continue };
            // SAFETY: the service manager opened it for this process, and it is taken here and nowhere else.
            let socket = unsafe { OwnedFd::from_raw_fd(fd) };
            fcntl_setfd(&socket, FdFlags::CLOEXEC).map_err(|error| fail(error.into()))?;
            match self.add_passed(socket, &name) {
                Ok(()) => {}
                Err(error) => return Err(fail(error)),
            }
        }
        let mut addresses = self.nbd.iter().filter_map(|(listener, _)| match listener {
            Listener::Tcp(listener) => listener.local_addr().ok(),
            Listener::Unix(_) => None,
        });
        match addresses.find(|address| !insecure && !address.ip().is_loopback()) {
            Some(address) => Err(exposed(&format!("the passed socket {address}"))),
            None => Ok(()),
        }
    }

    fn add_passed(&mut self, socket: OwnedFd, name: &str) -> std::io::Result<()> {
        let (family, kind) = (sockopt::socket_domain(&socket)?, sockopt::socket_type(&socket)?);
        let listens = sockopt::socket_acceptconn(&socket)?;
        let listener = match (family, listens) {
            (AddressFamily::UNIX, true) if kind == SocketType::STREAM => {
                let listener = std::os::unix::net::UnixListener::from(socket);
                listener.set_nonblocking(true)?;
                Listener::Unix(UnixListener::from_std(listener)?)
            }
            (AddressFamily::INET | AddressFamily::INET6, true) => {
                let listener = std::net::TcpListener::from(socket);
                listener.set_nonblocking(true)?;
                Listener::Tcp(TcpListener::from_std(listener)?)
            }
            (AddressFamily::UNIX, false) if kind == SocketType::STREAM => {
                self.links.push(socket);
                return Ok(());
            }
            _ => return Err(std::io::Error::other("it is no stream socket that listens")),
        };
        self.nbd.push((listener, name.to_owned()));
        Ok(())
    }
}

/// Binds a unix socket that only its owner may use. A socket file that nobody listens on any more is replaced.
async fn bind_unix(path: &Path) -> Result<UnixListener> {
    if let Some(directory) = path.parent().filter(|directory| directory.starts_with("/run/thinorigin")) {
        std::fs::create_dir_all(directory)
            .map_err(|error| Error::io("cannot make the directory", directory.display(), &error))?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(existing) if !existing.file_type().is_socket() => {
            return Err(Error::failed(format!(
                "{}: cannot listen: it exists and is not a socket",
                path.display()
            )));
        }
        Ok(_) if tokio::net::UnixStream::connect(path).await.is_ok() => {
            return Err(Error::refused(format!("{}: cannot listen: another server uses it", path.display())));
        }
        Ok(_) => std::fs::remove_file(path)
            .map_err(|error| Error::io("cannot replace a stale socket", path.display(), &error))?,
        Err(_) => {}
    }
    // The mask is process-wide, but nothing else makes files while sockets are bound.
    let mask = rustix::process::umask(rustix::fs::Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(path);
    rustix::process::umask(mask);
    bound.map_err(|error| Error::io("cannot listen", path.display(), &error))
}

async fn bind_tcp(address: &str, insecure: bool) -> Result<TcpListener> {
    let resolved: Vec<_> = tokio::net::lookup_host(address)
        .await
        .map_err(|error| Error::usage(format!("{address:?} is not ADDR:PORT: {error}")))?
        .collect();
    if !insecure && resolved.iter().any(|address| !address.ip().is_loopback()) {
        return Err(exposed(address));
    }
    TcpListener::bind(resolved.as_slice()).await.map_err(|error| Error::io("cannot listen", address, &error))
}

/// Nothing is encrypted, and others can reach it.
fn exposed(address: &str) -> Error {
    Error::usage(format!(
        "{address}: anybody on the network could read what is served there; --tls-certificates encrypts it, --insecure-tcp allows it"
    ))
}
