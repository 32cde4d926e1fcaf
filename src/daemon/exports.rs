//! The exports of a server, by name.

use crate::error::{Error, Result};
use crate::export::ImageExport;
use crate::image::{Image, OpenOptions};
use backends::Location;
use std::sync::Arc;
use tokio::sync::OnceCell;

/// One export: opened at start, or when it is first asked for.
#[derive(Debug)]
pub(crate) struct Entry {
    name: String,
    location: Location,
    options: OpenOptions,
    export: OnceCell<Arc<ImageExport>>,
}

impl Entry {
    pub(crate) fn new(name: String, location: Location, options: OpenOptions) -> Self {
        Entry { name, location, options, export: OnceCell::new() }
    }

    /// The export, opened if it is not yet. A failure is not remembered: the next call tries again.
    pub(crate) async fn open(&self) -> Result<&Arc<ImageExport>> {
        self.export
            .get_or_try_init(|| async {
                let image = Image::open(&self.location, &self.options).await?;
                Ok(Arc::new(ImageExport::new(self.name.clone(), Arc::new(image))))
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
