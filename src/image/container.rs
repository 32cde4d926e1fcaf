//! Goes into archives and compressed files until the image itself is reached.

use super::content::Content;
use super::open::{OpenOptions, open_content};
use super::packed::PackedFile;
use crate::error::{Error, Result};
use backends::Location;
use formats::Ask;
use formats::container::{Container, Look, Unpacking};

/// How many containers may be inside each other: a compressed file in an archive that is compressed.
const DEEPEST: usize = 3;

/// The image file, and what was gone through to reach it.
pub(super) struct Found {
    pub(super) content: Content,
    /// Words for people, outermost first: `ova`, `member "disk.vmdk"`, `xz`.
    pub(super) through: Vec<String>,
}

/// Opens the file at `location` and whatever contains the image in it. `member` picks one of an archive.
pub(super) async fn enter(location: &Location, member: Option<&str>, options: &OpenOptions) -> Result<Found> {
    let mut content = open_content(location, options).await?;
    let mut name = location.file_name();
    let mut through = Vec::new();
    let mut wanted = member;
    loop {
        let container = look(&content, &name, location, options).await?;
        if !matches!(container, Container::None) && through.len() >= DEEPEST {
            return Err(Error::failed(format!(
                "{location}: more than {DEEPEST} containers inside each other"
            )));
        }
        match container {
            Container::None => break,
            Container::Archive(archive) => {
                let picked = archive.pick(wanted.take());
                let picked = picked.map_err(|error| Error::failed(format!("{location}: {error}")))?;
                content = content.member(picked.at, picked.len);
                // An index would have to be a member too, and is not looked for.
                name.clone_from(&picked.name);
                through.push(format!("tar member {:?}", picked.name));
            }
            Container::Packed(packed) => {
                through.push(packed.packing().to_string());
                content = Content::unpacked(PackedFile::new(content, packed, options.store.as_ref()).await?);
            }
        }
    }
    if wanted.is_some() {
        return Err(Error::failed(format!("{location}: --member is for archives, and the file is none")));
    }
    if through.is_empty() && name.to_ascii_lowercase().ends_with(".ova") && options.image.format.is_none() {
        return Err(Error::failed(format!(
            "{location}: it is called an OVA and is no tar archive; if it is a disk, say so with --format"
        )));
    }
    Ok(Found { content, through })
}

async fn look(
    content: &Content,
    name: &str,
    location: &Location,
    options: &OpenOptions,
) -> Result<Container> {
    let mut unpacking = Unpacking::new(content.len(), name);
    let mut index = None;
    loop {
        let look = unpacking.poll().map_err(|error| Error::failed(format!("{location}: {error}")))?;
        match look {
            Look::Done(container) => return Ok(container),
            Look::Need(Ask::Bytes { file, at, len }) => {
                let file = if file.0 == 0 { content } else { index.as_ref().unwrap_or(content) };
                unpacking.supply_bytes(file.read(at, len).await?.into());
            }
            Look::Need(Ask::File { name, .. }) => {
                let opened =
                    async { open_content(&options.gate.admit(location, &name)?, options).await }.await;
                let opened = opened.map_err(|error| {
                    Error::failed(format!(
                        "{location}: it is compressed with bgzip, and its index cannot be opened; make it with \
                         bgzip --reindex, beside the file: {error}"
                    ))
                })?;
                unpacking.supply_file(opened.len());
                index = Some(opened);
            }
        }
    }
}
