//! `thinorigin map`.

use super::args::OneImage;
use crate::error::Result;
use crate::image::Stretch;
use crate::output;
use serde::Serialize;

/// One entry, with the meaning `qemu-img map --output=json` gives the fields.
#[derive(Serialize)]
struct Entry {
    start: u64,
    length: u64,
    depth: usize,
    present: bool,
    zero: bool,
    data: bool,
    compressed: bool,
}

impl From<Stretch> for Entry {
    fn from(stretch: Stretch) -> Self {
        Entry {
            start: stretch.start,
            length: stretch.len,
            depth: stretch.layer,
            present: stretch.present,
            zero: stretch.zero,
            data: stretch.data,
            compressed: stretch.compressed,
        }
    }
}

/// Lists what the disk holds.
pub(super) async fn run(args: OneImage, json: bool) -> Result<()> {
    let image = args.reading.open(&args.location).await?;
    let mut walk = image.walk(0, image.virtual_size());
    let mut entries = Vec::new();
    while let Some(stretch) = walk.next().await? {
        entries.push(Entry::from(stretch));
    }
    image.settle().await?;
    if json {
        return output::json(&entries);
    }
    output::table(
        &["start", "length", "depth", "content"],
        entries.iter().map(|entry| {
            let content = match (entry.present, entry.zero, entry.compressed) {
                (false, ..) => "absent",
                (_, true, _) => "zero",
                (.., true) => "compressed",
                _ => "data",
            };
            vec![
                format!("{:#x}", entry.start),
                format!("{:#x}", entry.length),
                entry.depth.to_string(),
                content.to_owned(),
            ]
        }),
    )
}
