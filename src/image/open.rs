//! Opening an image and its parents: drives the parsers' questions with real sources, through the gate.

use super::container::{Found, enter};
use super::content::Content;
use super::gate::Gate;
use super::json_name;
use super::layer::LayerFiles;
use crate::error::{Error, Result};
use backends::cache::Store;
use backends::{AnySource, AwaySource, Identity, Location};
use formats::{Ask, Opened, Opening, ParentCheck, ParentRef, Progress};
use std::collections::HashSet;
use std::sync::Arc;

/// How to open an image.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// How to read the top image.
    pub image: formats::Options,
    /// Which file of an archive is the top image; without it, the only one that is named like a disk.
    pub member: Option<String>,
    /// Which other files the image may name.
    pub gate: Gate,
    /// Where blocks of remote objects and decoded clusters are kept; `None` keeps a little in memory only.
    pub store: Option<Store>,
    /// Whether servers are asked for the version of objects, too, that the store has all of.
    pub revalidate: bool,
    /// How sources are reached.
    pub sources: backends::Options,
}

/// Layers of one image, top first, as opened.
pub(super) async fn open_chain(location: &Location, options: &OpenOptions) -> Result<Vec<Arc<LayerFiles>>> {
    let mut layers = Vec::new();
    let mut seen = HashSet::new();
    let mut opened = open_layer(location, options.image.clone(), options.member.as_deref(), options).await?;
    loop {
        let (layer, parent) = opened;
        if !seen.insert(layer.files[0].identity().clone()) {
            return Err(Error::failed(format!(
                "{location}: the chain of parents comes back to {}",
                layer.location
            )));
        }
        if layers.len() == formats::limits::CHAIN_DEPTH {
            return Err(Error::failed(format!(
                "{location}: the chain of parents is longer than {} images",
                formats::limits::CHAIN_DEPTH
            )));
        }
        let child = layer.location.clone();
        layers.push(Arc::new(layer));
        match parent {
            Some(parent) => opened = open_parent(&child, &parent, options).await?,
            None => return Ok(layers),
        }
    }
}

/// Opens one image file and the extents it names.
async fn open_layer(
    location: &Location,
    image: formats::Options,
    member: Option<&str>,
    options: &OpenOptions,
) -> Result<(LayerFiles, Option<ParentRef>)> {
    // Read as raw, a file is itself, whatever its guest made it begin with.
    let Found { content, through } = match image.format {
        Some(formats::Format::Raw) if member.is_none() => {
            Found { content: open_content(location, options).await?, through: Vec::new() }
        }
        _ => enter(location, member, options).await?,
    };
    let mut files = vec![content];
    let parse_error = |error: formats::FormatError| Error::failed(format!("{location}: {error}"));
    let view =
        image.snapshot.as_ref().map_or_else(|| "active".to_owned(), |name| format!("snapshot {name:?}"));
    let mut opening = Opening::new(files[0].len(), image);
    loop {
        match opening.poll().map_err(parse_error)? {
            Progress::Need(Ask::Bytes { file, at, len }) => {
                let file = files.get(usize::from(file.0)).ok_or_else(|| {
                    Error::failed(format!("{location}: the parser asked for a file it has not opened"))
                })?;
                opening.supply_bytes(file.read(at, len).await?.into());
            }
            Progress::Need(Ask::File { name, .. }) => {
                let content = open_content(&options.gate.admit(location, &name)?, options).await?;
                // An extent of itself would show the image's metadata, and whatever else is in it, as the disk.
                if files.first().is_some_and(|image| same_file(image.identity(), content.identity())) {
                    return Err(Error::failed(format!("{location}: the image names itself, as {name:?}")));
                }
                opening.supply_file(content.len());
                files.push(content);
            }
            Progress::Done(opened) => {
                let Opened { layer, parent, content_id } = opened;
                match layer.format() {
                    formats::Format::Raw => files.iter().for_each(Content::let_go),
                    _ => files.iter().for_each(Content::keep_first),
                }
                let layer = LayerFiles::new(location.clone(), layer, view, content_id, files, through);
                return Ok((layer, parent));
            }
        }
    }
}

/// Whether two names lead to one file: a file may have several.
fn same_file(one: &Identity, other: &Identity) -> bool {
    let version = |identity: &Identity| (identity.size, identity.validator.clone());
    one == other || (!one.validator.is_empty() && version(one) == version(other))
}

pub(super) async fn open_content(location: &Location, options: &OpenOptions) -> Result<Content> {
    let away = |identity| AnySource::Away(Box::new(AwaySource::new(location, identity, &options.sources)));
    let store = options.store.as_ref();
    if let Some(kept) = store.filter(|_| !options.revalidate)
        && let Some(identity) = kept.complete(location).await
    {
        return Content::new(away(identity), store).await;
    }
    let known = match store {
        Some(store) => store.known(location).await,
        None => None,
    };
    let sources = options.sources.clone().with_known(known.is_some()).with_ends(true);
    let source = match (backends::open(location, &sources).await, known) {
        (Err(error), Some(identity)) if error.kind == backends::Kind::Unreachable => {
            tracing::warn!("{error}; what the cache has of it is served");
            away(identity)
        }
        (source, _) => source?,
    };
    Content::new(source, store).await
}

/// Opens the first of the names a child gives its parent that exists and holds the right content.
async fn open_parent(
    child: &Location,
    parent: &ParentRef,
    options: &OpenOptions,
) -> Result<(LayerFiles, Option<ParentRef>)> {
    let mut first_error = None;
    for name in &parent.names {
        let attempt = async {
            let json = json_name::read(name);
            let name = json.as_ref().map_or(name, |json| &json.name);
            let location = options.gate.admit(child, name)?;
            // As in qemu, what the image records beside the name is worth more than what the name says.
            let format = parent.format.or_else(|| json.as_ref()?.format);
            let opened =
                open_layer(&location, formats::Options { format, ..Default::default() }, None, options)
                    .await
                    .map_err(|error| Error::failed(format!("{child}: cannot open its parent: {error}")))?;
            match parent.check {
                ParentCheck::Id(expected) if opened.0.content_id != Some(expected) => Err(Error::failed(
                    format!("{child}: {location} is not the parent it was made from: its identifier differs"),
                )),
                _ => Ok(opened),
            }
        };
        match attempt.await {
            Ok(opened) => return Ok(opened),
            Err(error) => {
                first_error.get_or_insert(error);
            }
        }
    }
    Err(first_error
        .unwrap_or_else(|| Error::failed(format!("{child}: it needs a parent image but does not name one"))))
}
