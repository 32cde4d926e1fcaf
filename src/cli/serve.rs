//! `thinorigin serve`.

use super::args::Serve;
use super::reading;
use super::sockets::Sockets;
use crate::daemon::admin::{self, Control};
use crate::daemon::spec::read_config;
use crate::daemon::{Attachments, Common, ExportSpec, Registry, handover, record, watchdog};
use crate::error::{Error, Result};
use crate::prefetch::Wishes;
use crate::privileges::{Owner, become_user};
use nbd::{Limits, Server, Tls};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

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
    // From here on there are clients that would notice an end without a drain.
    let ends = (signal_handler(SignalKind::terminate())?, signal_handler(SignalKind::interrupt())?);
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
        attachments.adopt(sockets.links).await;
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
        sockets.links.iter().for_each(handover::refuse);
        tokio::spawn(watchdog::watch(registry.clone(), None));
    }
    tokio::spawn(crate::memory::give_back());
    // A service manager that is not there to be told is no error.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    eprintln!("ready: {}", listening.join(", "));
    let failure = tokio::select! {
        () = stop.cancelled() => Ok(()),
        () = any_of(ends) => Ok(()),
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

/// Waits for one of two signals.
async fn any_of((mut one, mut other): (Signal, Signal)) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
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
