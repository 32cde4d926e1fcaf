//! What a served image holds: for whoever copies it.

use super::api::Content;
use crate::error::Result;
use crate::image::Image;

/// What places are rounded outwards to, in bytes: less only makes for longer answers.
const GRANULE: u64 = 64 << 10;

/// What `image` holds, and how much of it is local. Reads its tables.
pub(super) async fn of(image: &Image) -> Result<Content> {
    let mut content = Content { stored: 0, local: 0, ranges: Vec::new() };
    let size = image.virtual_size();
    let mut walk = image.walk_local(0, size).await;
    while let Some(stretch) = walk.next().await? {
        if stretch.zero {
            continue;
        }
        content.stored += stretch.len;
        content.local += if stretch.local { stretch.len } else { 0 };
        let start = stretch.start / GRANULE * GRANULE;
        let end = (stretch.start + stretch.len).next_multiple_of(GRANULE).min(size);
        match content.ranges.last_mut() {
            Some((from, len)) if *from + *len >= start => *len = (*len).max(end - *from),
            _ => content.ranges.push((start, end - start)),
        }
    }
    Ok(content)
}
