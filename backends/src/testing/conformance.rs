//! What every source must do, whatever its kind.

use crate::{Kind, Source};
use bytes::Bytes;
use futures_util::future::join_all;
use std::ops::Range;

/// Reads `source`, which holds `content`, in every way that is easily got wrong. The error says what was.
pub async fn conforms(source: &impl Source, content: &Bytes) -> Result<(), String> {
    let size = content.len() as u64;
    if source.len() != size || source.is_empty() != (size == 0) || source.identity().size != size {
        return Err(format!("its size is {}, not {size}", source.len()));
    }
    for range in edges(size) {
        check(source, content, range).await?;
    }
    let past = [0..size + 1, size..size + 1, size + 1..size + 1, size + 5..size + 9, u64::MAX - 1..u64::MAX];
    for range in past {
        match source.read(range.clone()).await {
            Err(error) if error.kind == Kind::Range => {}
            other => return Err(format!("{range:?}, which is past the end, gives {other:?}")),
        }
    }
    if size == 0 {
        return Ok(());
    }
    // Many at once, of all sizes, each dropped once before it is done.
    let ranges: Vec<_> = (0..64u64)
        .map(|i| {
            let start = i * 7_919_111 % size;
            start..size.min(start + i * i * 40)
        })
        .collect();
    for range in &ranges {
        let _ = tokio::time::timeout(std::time::Duration::ZERO, source.read(range.clone())).await;
    }
    join_all(ranges.into_iter().map(|range| check(source, content, range))).await.into_iter().collect()
}

/// Ranges at the ends, across likely block boundaries, empty, and whole.
fn edges(size: u64) -> Vec<Range<u64>> {
    let mut ranges = vec![0..0, size..size, 0..size, 0..size.min(1), size.saturating_sub(1)..size];
    for boundary in [512, 4096, 65_536, 1 << 20, size / 2] {
        if boundary > 0 && boundary < size {
            ranges.extend([0..boundary, boundary..size, boundary - 1..boundary + 1, boundary..boundary]);
        }
    }
    ranges
}

async fn check(source: &impl Source, content: &Bytes, range: Range<u64>) -> Result<(), String> {
    match source.read(range.clone()).await {
        Ok(bytes) if bytes == content.slice(range.start as usize..range.end as usize) => Ok(()),
        Ok(bytes) => Err(format!("{range:?} gives {} other bytes", bytes.len())),
        Err(error) => Err(format!("{range:?} fails: {error}")),
    }
}
