//! `thinorigin map`.

use super::args::OneImage;
use crate::error::Result;
use crate::image::{Image, Stretch};
use crate::output;
use sr::Extent;

impl From<Stretch> for Extent {
    fn from(stretch: Stretch) -> Self {
        Extent {
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

/// What `image` holds, from its beginning to its end.
pub(crate) async fn extents(image: &Image) -> Result<Vec<Extent>> {
    let mut walk = image.walk(0, image.virtual_size());
    let mut extents = Vec::new();
    while let Some(stretch) = walk.next().await? {
        extents.push(Extent::from(stretch));
    }
    Ok(extents)
}

/// Lists what the disk holds.
pub(super) async fn run(args: OneImage, json: bool) -> Result<()> {
    let image = args.reading.open(&args.location).await?;
    let extents = extents(&image).await?;
    image.settle().await?;
    show(&extents, json)
}

/// Prints extents: in JSON, or as a table.
pub(crate) fn show(extents: &[Extent], json: bool) -> Result<()> {
    if json {
        return output::json(&extents);
    }
    output::table(
        &["start", "length", "depth", "content"],
        extents.iter().map(|extent| {
            let content = match (extent.present, extent.zero, extent.compressed) {
                (false, ..) => "absent",
                (_, true, _) => "zero",
                (.., true) => "compressed",
                _ => "data",
            };
            vec![
                format!("{:#x}", extent.start),
                format!("{:#x}", extent.length),
                extent.depth.to_string(),
                content.to_owned(),
            ]
        }),
    )
}
