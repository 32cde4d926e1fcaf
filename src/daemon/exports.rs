//! The exports of a server, by name. They may change while it runs: a client that has an export keeps it.

use super::api::Exported;
use super::spec::ExportSpec;
use crate::error::{Error, Result};
use crate::export::ImageExport;
use crate::image::{Gate, Image, OpenOptions};
use crate::prefetch::Wishes;
use crate::trace::Recorder;
use backends::Location;
use nbd::{Client, Fingerprint};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::OnceCell;

/// Who asked for an export, and so who may take it away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// An argument of the server: it stays.
    Argument,
    /// The configuration file: it goes when the file is read again without it.
    Config,
    /// A request on the control socket.
    Control,
}

/// One export: opened at start, or when it is first asked for.
#[derive(Debug)]
pub(crate) struct Entry {
    name: String,
    location: Location,
    spec: ExportSpec,
    origin: Origin,
    options: OpenOptions,
    wishes: Wishes,
    /// Who may have it; empty: everybody.
    clients: Vec<Fingerprint>,
    patience: Option<Duration>,
    export: OnceCell<Arc<ImageExport>>,
}

/// What every export of a server is made with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Common {
    /// How images are opened.
    pub(crate) options: OpenOptions,
    /// What is fetched of every image in the background.
    pub(crate) wishes: Wishes,
    /// For how long reads wait for a server that is away.
    pub(crate) patience: Option<Duration>,
    /// Whether clients show certificates, so that it can be said who they are.
    pub(crate) knows_clients: bool,
}

impl Entry {
    /// The export that `spec` asks for. Does not open it.
    pub(crate) fn new(spec: ExportSpec, origin: Origin, common: &Common) -> Result<Arc<Entry>> {
        let Common { options, wishes, patience, knows_clients } = common.clone();
        let name = spec.name()?;
        let client = |text: &String| {
            let what =
                || Error::usage(format!("{name}: {text:?} is not a SHA-256 fingerprint of a certificate"));
            Fingerprint::parse(text).ok_or_else(what)
        };
        let clients = spec.clients.iter().map(client).collect::<Result<Vec<_>>>()?;
        if !clients.is_empty() && !knows_clients {
            let what = "only with --tls-verify-peer can it be for some clients";
            return Err(Error::usage(format!("{name}: {what}")));
        }
        let format = spec.format.as_deref().map(|format| {
            format.parse().map_err(|_| Error::usage(format!("{name}: {format:?} is not an image format")))
        });
        let options = OpenOptions {
            image: formats::Options {
                format: format.transpose()?.or(options.image.format),
                snapshot: spec.snapshot.clone().or(options.image.snapshot),
            },
            member: spec.member.clone().or(options.member),
            gate: Gate { allow: [&options.gate.allow[..], &spec.allow_reference].concat() },
            ..options
        };
        let trace: Option<Location> = spec.prefetch_trace.as_deref().map(str::parse).transpose()?;
        let wishes = Wishes { whole: wishes.whole || spec.prefetch, trace: trace.or(wishes.trace), ..wishes };
        let (location, export) = (spec.location()?, OnceCell::new());
        Ok(Arc::new(Entry { name, location, spec, origin, options, wishes, clients, patience, export }))
    }

    fn is_for(&self, client: &Client) -> bool {
        self.clients.is_empty() || client.fingerprint().is_some_and(|own| self.clients.contains(&own))
    }

    /// What it is called.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What is known of it, without opening it.
    pub(crate) async fn describe(&self) -> Exported {
        let export = self.export.get();
        Exported {
            name: self.name.clone(),
            location: self.location.to_string(),
            open: export.is_some(),
            format: export.map(|export| export.image().format().to_string()),
            size: export.map(|export| export.image().virtual_size()),
            progress: match export {
                Some(export) => export.progress().await,
                None => None,
            },
            waiting: export.and_then(|export| export.waiting()),
        }
    }

    /// The export, opened if it is not yet. A failure is not remembered: the next call tries again.
    pub(crate) async fn open(&self) -> Result<&Arc<ImageExport>> {
        self.export
            .get_or_try_init(|| async {
                let image = Arc::new(Image::open(&self.location, &self.options).await?);
                let recorder = self.spec.record_trace.clone();
                let recorder =
                    recorder.map(|file| Recorder::begin(file, image.virtual_size())).transpose()?;
                let export = ImageExport::new(self.name.clone(), image)
                    .with_background(self.wishes.clone(), self.options.sources.clone())
                    .with_patience(self.patience);
                Ok(Arc::new(match recorder {
                    Some(recorder) => export.with_recorder(recorder),
                    None => export,
                }))
            })
            .await
    }

    /// Opens it in a task of its own; says in the log if that fails. The next client tries again then.
    fn open_soon(self: &Arc<Self>) {
        let entry = self.clone();
        tokio::spawn(async move {
            if let Err(error) = entry.open().await {
                tracing::error!(export = entry.name, "cannot open: {error}");
            }
        });
    }
}

/// All exports of a server. The first is also the default export.
#[derive(Debug)]
pub(crate) struct Registry {
    entries: RwLock<Vec<Arc<Entry>>>,
    common: Common,
    /// Whether new exports wait for their first client to be opened.
    lazy: bool,
}

impl Registry {
    /// A registry of the exports that the arguments and the configuration of a server name; refuses two with one name.
    pub(crate) fn new(
        arguments: Vec<ExportSpec>,
        config: Vec<ExportSpec>,
        common: Common,
        lazy: bool,
    ) -> Result<Self> {
        let registry = Registry { entries: RwLock::default(), common, lazy };
        for (specs, origin) in [(arguments, Origin::Argument), (config, Origin::Config)] {
            for spec in specs {
                let entry = Entry::new(spec, origin, &registry.common)?;
                registry.insert(&entry).map_err(|error| {
                    Error::usage(format!("{error}: name one of them, with NAME=LOCATION or `name`"))
                })?;
            }
        }
        Ok(registry)
    }

    /// All entries, as they are now.
    pub(crate) fn entries(&self) -> Vec<Arc<Entry>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn insert(&self, entry: &Arc<Entry>) -> Result<()> {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        if entries.iter().any(|other| other.name == entry.name) {
            return Err(Error::refused(format!("two exports are called {:?}", entry.name)));
        }
        entries.push(entry.clone());
        Ok(())
    }

    /// Adds an export, which must open.
    pub(crate) async fn add(&self, spec: ExportSpec) -> Result<Arc<Entry>> {
        let entry = Entry::new(spec, Origin::Control, &self.common)?;
        entry.open().await?;
        self.insert(&entry)?;
        tracing::info!(export = entry.name, location = %entry.location, "added");
        Ok(entry)
    }

    /// Takes the export called `name` away. Clients that have it keep it until they leave. None if there is none.
    pub(crate) fn remove(&self, name: &str) -> Option<Arc<Entry>> {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let at = entries.iter().position(|entry| entry.name == name)?;
        let removed = entries.remove(at);
        tracing::info!(export = name, "removed");
        Some(removed)
    }

    /// Brings the exports of the configuration file to what it says now: those that are there as they were stay, with
    /// what they hold. One that cannot be made, or whose name another has, is left out, with an error in the log.
    pub(crate) fn reload(&self, specs: Vec<ExportSpec>) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let before = entries.clone();
        let was = |spec: &ExportSpec| {
            before.iter().find(|entry| entry.origin == Origin::Config && entry.spec == *spec).cloned()
        };
        let mut after: Vec<_> =
            before.iter().filter(|entry| entry.origin == Origin::Argument).cloned().collect();
        let mut new = Vec::new();
        let made = specs.into_iter().map(|spec| match was(&spec) {
            Some(entry) => Ok(entry),
            None => Entry::new(spec, Origin::Config, &self.common).inspect(|entry| new.push(entry.clone())),
        });
        let made: Vec<_> = made.collect();
        let asked_for = before.iter().filter(|entry| entry.origin == Origin::Control).cloned().map(Ok);
        for entry in made.into_iter().chain(asked_for) {
            match entry {
                Ok(entry) if after.iter().any(|other| other.name == entry.name) => {
                    tracing::error!("two exports are called {:?}; the second one is left out", entry.name);
                }
                Ok(entry) => after.push(entry),
                Err(error) => tracing::error!("an export is left out: {error}"),
            }
        }
        let has =
            |list: &[Arc<Entry>], entry: &Arc<Entry>| list.iter().any(|other| Arc::ptr_eq(other, entry));
        for entry in before.iter().filter(|entry| !has(&after, entry)) {
            tracing::info!(export = entry.name, "removed");
        }
        for entry in new.iter().filter(|entry| has(&after, entry)) {
            tracing::info!(export = entry.name, location = %entry.location, "added");
            if !self.lazy {
                entry.open_soon();
            }
        }
        *entries = after;
    }

    /// All exports, and how much of each is local.
    pub(crate) async fn describe(&self) -> Vec<Exported> {
        let entries = self.entries();
        futures_util::future::join_all(entries.iter().map(|entry| entry.describe())).await
    }

    /// Those that are open.
    pub(crate) fn open_exports(&self) -> Vec<Arc<ImageExport>> {
        self.entries().iter().filter_map(|entry| entry.export.get().cloned()).collect()
    }

    /// Opens every export, and fails with the first that cannot be opened.
    pub(crate) async fn open_all(&self) -> Result<()> {
        for entry in self.entries() {
            entry.open().await?;
        }
        Ok(())
    }
}

impl nbd::Exports for Registry {
    type Export = ImageExport;

    async fn lookup(&self, name: &str, client: &Client) -> Option<Arc<ImageExport>> {
        let entries = self.entries();
        let entry = match name {
            "" => entries.first(),
            _ => entries.iter().find(|entry| entry.name == name),
        }?;
        if !entry.is_for(client) {
            tracing::warn!(export = entry.name, "a client asks for it who may not have it");
            return None;
        }
        match entry.open().await {
            Ok(export) => Some(export.clone()),
            Err(error) => {
                tracing::error!(export = entry.name, "cannot open: {error}");
                None
            }
        }
    }

    fn names(&self, client: &Client) -> Vec<String> {
        let entries = self.entries();
        entries.iter().filter(|entry| entry.is_for(client)).map(|entry| entry.name.clone()).collect()
    }
}
