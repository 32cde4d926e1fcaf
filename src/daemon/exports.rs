//! The exports of a server, by name.

use super::api::Exported;
use crate::error::{Error, Result};
use crate::export::ImageExport;
use crate::image::{Image, OpenOptions};
use crate::prefetch::Wishes;
use crate::trace::Recorder;
use backends::Location;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::OnceCell;

/// One export: opened at start, or when it is first asked for.
#[derive(Debug)]
pub(crate) struct Entry {
    name: String,
    location: Location,
    options: OpenOptions,
    wishes: Wishes,
    /// Where what is read is written down.
    record: Option<PathBuf>,
    export: OnceCell<Arc<ImageExport>>,
}

impl Entry {
    pub(crate) fn new(name: String, location: Location, options: OpenOptions) -> Self {
        let (wishes, record, export) = (Wishes::default(), None, OnceCell::new());
        Entry { name, location, options, wishes, record, export }
    }

    /// What the export is called.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What is fetched of it in the background.
    pub(crate) fn wishes(&mut self) -> &mut Wishes {
        &mut self.wishes
    }

    /// Writes down in `file` what is read of it.
    pub(crate) fn record(&mut self, file: PathBuf) {
        self.record = Some(file);
    }

    async fn describe(&self) -> Exported {
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
        }
    }

    /// The export, opened if it is not yet. A failure is not remembered: the next call tries again.
    pub(crate) async fn open(&self) -> Result<&Arc<ImageExport>> {
        self.export
            .get_or_try_init(|| async {
                let image = Arc::new(Image::open(&self.location, &self.options).await?);
                let recorder = self
                    .record
                    .clone()
                    .map(|file| Recorder::begin(file, image.virtual_size()))
                    .transpose()?;
                let export = ImageExport::new(self.name.clone(), image)
                    .with_background(self.wishes.clone(), self.options.sources.clone());
                Ok(Arc::new(match recorder {
                    Some(recorder) => export.with_recorder(recorder),
                    None => export,
                }))
            })
            .await
    }
}

/// All exports of a server. The first is also the default export.
#[derive(Debug)]
pub(crate) struct Registry {
    entries: Vec<Entry>,
}

impl Registry {
    /// A registry of `entries`; refuses two with one name.
    pub(crate) fn new(entries: Vec<Entry>) -> Result<Self> {
        for (index, entry) in entries.iter().enumerate() {
            if entries[..index].iter().any(|other| other.name == entry.name) {
                return Err(Error::usage(format!(
                    "two exports are called {:?}: name one of them with NAME=LOCATION",
                    entry.name
                )));
            }
        }
        Ok(Registry { entries })
    }

    /// All exports, and how much of each is local.
    pub(crate) async fn describe(&self) -> Vec<Exported> {
        futures_util::future::join_all(self.entries.iter().map(Entry::describe)).await
    }

    /// Opens every export, and fails with the first that cannot be opened.
    pub(crate) async fn open_all(&self) -> Result<()> {
        for entry in &self.entries {
            entry.open().await?;
        }
        Ok(())
    }
}

impl nbd::Exports for Registry {
    type Export = ImageExport;

    async fn lookup(&self, name: &str) -> Option<Arc<ImageExport>> {
        let entry = match name {
            "" => self.entries.first(),
            _ => self.entries.iter().find(|entry| entry.name == name),
        }?;
        match entry.open().await {
            Ok(export) => Some(export.clone()),
            Err(error) => {
                tracing::error!(export = entry.name, "cannot open: {error}");
                None
            }
        }
    }

    fn names(&self) -> Vec<String> {
        self.entries.iter().map(|entry| entry.name.clone()).collect()
    }
}
