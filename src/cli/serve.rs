//! `thinorigin serve`.

use super::args::Serve;
use super::reading;
use crate::daemon::admin::{self, Control};
use crate::daemon::spec::read_config;
use crate::daemon::{Attachments, Common, ExportSpec, Registry, admin_path, record, watchdog};
use crate::error::{Error, Result};
use crate::prefetch::Wishes;
use crate::privileges::{Owner, become_user};
use nbd::{Limits, Listener, Server, Tls};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Where clients find the server unless told otherwise.
const SOCKET: &str = "/run/thinorigin/nbd.sock";

/// Serves until SIGTERM or SIGINT, then answers what is under way and ends.
pub(super) async fn run(args: Serve) -> Result<()> {
    let tls =
        args.tls_certificates.as_deref().map(|directory| tls(directory, args.tls_verify_peer)).transpose()?;
    let specs = specs(&args)?;
    let config = args.config.as_deref().map(read_config).transpose()?.unwrap_or_default();
    let user = args.user.as_deref().map(Owner::parse).transpose()?;
    let sockets = Sockets::bind(&args).await?;
    user.map_or(Ok(()), become_user)?;
    let options = args.reading.options()?;
    let store = options.store.clone();
    let wishes = Wishes { trace: None, whole: args.prefetch, published: !args.no_published_trace };
    let common = Common {
        options: options.clone(),
        wishes: wishes.clone(),
        patience: args.patience.map(Duration::from_secs),
        knows_clients: args.tls_verify_peer,
    };
    let registry = Arc::new(Registry::new(specs, config, common, args.lazy)?);
    if !args.lazy {
        registry.open_all().await?;
    }
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let limits = Limits { max_connections: args.max_connections, ..Limits::default() };
    let server = Server::new(registry.clone(), limits);
    let server = match tls {
        Some(tls) => server.with_tls(tls),
        None => server,
    };
    if let Some(config) = args.config.clone() {
        tokio::spawn(reload(config, registry.clone(), signal_handler(SignalKind::hangup())?));
    }
    let mut listening = Vec::new();
    for (listener, name) in sockets.nbd {
        listening.push(name);
        let (server, stop) = (server.clone(), stop.clone());
        tasks.spawn(async move {
            server
                .serve(listener, stop)
                .await
                .map_err(|error| Error::failed(format!("cannot accept: {error}")))
        });
    }
    if let Some((listener, path)) = sockets.admin {
        let attachments = Attachments::open(record::directory(&path), options, wishes, args.patience)?;
        attachments.adopt().await;
        tokio::spawn(watchdog::watch(registry.clone(), Some(attachments.clone())));
        let rescuing = attachments.clone();
        tokio::spawn(async move { rescuing.keep_rescuing().await });
        if args.while_attached {
            end_when_unused(attachments.clone(), stop.clone());
        }
        listening.push(format!("control unix:{}", path.display()));
        let control =
            Control { registry: registry.clone(), attachments: attachments.clone(), store: store.clone() };
        let until = stop.clone();
        tasks.spawn(async move {
            let served = admin::serve(listener, control, until).await;
            attachments.drain().await;
            served
        });
    } else {
        tokio::spawn(watchdog::watch(registry.clone(), None));
    }
    tokio::spawn(crate::memory::give_back());
    // A service manager that is not there to be told is no error.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    eprintln!("ready: {}", listening.join(", "));
    let failure = tokio::select! {
        () = stop.cancelled() => Ok(()),
        signalled = end_signal() => signalled,
        ended = tasks.join_next() => ended.map_or(Ok(()), flatten),
    };
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    stop.cancel();
    let mut outcome = failure;
    while let Some(ended) = tasks.join_next().await {
        outcome = outcome.and(flatten(ended));
    }
    if let Some(store) = store {
        outcome = outcome.and(reading::settle(store).await);
    }
    drop(sockets.files);
    outcome
}

/// The certificates in `directory`.
fn tls(directory: &Path, verify_peer: bool) -> Result<Tls> {
    backends::install_crypto();
    let clients = if verify_peer { nbd::TlsClients::Vouched } else { nbd::TlsClients::Anybody };
    Tls::load(directory, clients).map_err(|error| Error::failed(format!("TLS: {error}")))
}

fn flatten(ended: std::result::Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    ended.unwrap_or_else(|error| Err(Error::failed(format!("a serving task ended before its time: {error}"))))
}

fn signal_handler(kind: SignalKind) -> Result<Signal> {
    signal(kind).map_err(|error| Error::failed(format!("cannot handle signals: {error}")))
}

async fn end_signal() -> Result<()> {
    let mut terminate = signal_handler(SignalKind::terminate())?;
    let mut interrupt = signal_handler(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Reads the configuration again at every SIGHUP. A file with a mistake changes nothing.
async fn reload(config: PathBuf, registry: Arc<Registry>, mut hangup: Signal) {
    while hangup.recv().await.is_some() {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Reloading]);
        match read_config(&config) {
            Ok(specs) => registry.reload(specs),
            Err(error) => tracing::error!("nothing was changed: {error}"),
        }
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    }
}

/// Ends a server that was started for the kernel alone, a while after the last device is gone.
fn end_when_unused(attachments: Arc<Attachments>, stop: CancellationToken) {
    const LINGER: Duration = Duration::from_secs(2);
    /// A server that was just started waits longer for its first request.
    const FIRST: Duration = Duration::from_secs(30);
    tokio::spawn(async move {
        attachments.unused(FIRST, LINGER).await;
        stop.cancel();
    });
}

/// Splits `[NAME=]REST`. What stands before the first `=` is a name unless it is the beginning of a path or URL.
fn split_name(argument: &str) -> (Option<&str>, &str) {
    match argument.split_once('=') {
        Some((name, rest)) if !name.contains(['/', ':']) => (Some(name), rest),
        _ => (None, argument),
    }
}

/// The exports that the arguments name.
fn specs(args: &Serve) -> Result<Vec<ExportSpec>> {
    let spec = |argument: &String| {
        let (name, location) = split_name(argument);
        // Refused here, where it is known which argument it is.
        reading::parse(location)?;
        let (name, location) = (name.map(str::to_owned), location.to_owned());
        Ok::<_, Error>(ExportSpec { name, location, ..ExportSpec::default() })
    };
    let mut specs = args.exports.iter().map(spec).collect::<Result<Vec<_>>>()?;
    for argument in &args.prefetch_trace {
        let (spec, trace) = named(&mut specs, argument, "--prefetch-trace")?;
        reading::parse(trace)?;
        spec.prefetch_trace = Some(trace.to_owned());
    }
    for argument in &args.record_trace {
        let (spec, file) = named(&mut specs, argument, "--record-trace")?;
        spec.record_trace = Some(PathBuf::from(file));
    }
    Ok(specs)
}

/// The export that `[NAME=]REST`, the value of `option`, is about: the first, if no name stands there. And the rest.
fn named<'a, 'b>(
    specs: &'a mut [ExportSpec],
    argument: &'b str,
    option: &str,
) -> Result<(&'a mut ExportSpec, &'b str)> {
    let (name, rest) = split_name(argument);
    let called = |spec: &ExportSpec| name.is_none_or(|name| spec.name().is_ok_and(|own| own == name));
    let spec = specs.iter_mut().find(|spec| called(spec));
    spec.map(|spec| (spec, rest)).ok_or_else(|| {
        let what = match name {
            Some(name) => format!("no export is called {name:?}"),
            None => "there is no export".to_owned(),
        };
        Error::usage(format!("{option} {argument}: {what}"))
    })
}

/// What the server listens on.
#[derive(Default)]
struct Sockets {
    nbd: Vec<(Listener, String)>,
    admin: Option<(UnixListener, PathBuf)>,
    files: SocketFiles,
}

/// Socket files of ours; removed when this is dropped, so that a server that does not start leaves none either.
#[derive(Default)]
struct SocketFiles(Vec<(PathBuf, u64)>);

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
    async fn bind(args: &Serve) -> Result<Self> {
        let mut sockets = Sockets::default();
        sockets.inherit()?;
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
            let listener = bind_tcp(address, args.insecure_tcp || args.tls_certificates.is_some()).await?;
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

    /// Takes over sockets passed by systemd (`LISTEN_FDS`).
    fn inherit(&mut self) -> Result<()> {
        let mut passed = listenfd::ListenFd::from_env();
        let fail =
            |error: std::io::Error| Error::failed(format!("cannot use a socket that was passed: {error}"));
        for index in 0..passed.len() {
            let listener = match passed.take_unix_listener(index) {
                Ok(Some(listener)) => {
                    listener.set_nonblocking(true).map_err(fail)?;
                    Listener::Unix(UnixListener::from_std(listener).map_err(fail)?)
                }
                Ok(None) => continue,
                Err(_) => {
                    let Some(listener) = passed.take_tcp_listener(index).map_err(fail)? else { continue };
                    listener.set_nonblocking(true).map_err(fail)?;
                    Listener::Tcp(TcpListener::from_std(listener).map_err(fail)?)
                }
            };
            self.nbd.push((listener, format!("passed socket {index}")));
        }
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
        return Err(Error::usage(format!(
            "{address}: anybody on the network could read what is served there; --tls-certificates encrypts it, --insecure-tcp allows it"
        )));
    }
    TcpListener::bind(resolved.as_slice()).await.map_err(|error| Error::io("cannot listen", address, &error))
}
