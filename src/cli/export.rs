//! `thinorigin cache export`: a disk that is all in the cache, as a file or on a device.

use super::args::Export;
use super::reading;
use crate::error::{Error, Result};
use crate::image::{Image, Piece};
use crate::output;
use crate::prefetch::{self, steps};
use crate::size::Size;
use backends::cache::{Lease, Span};
use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;
use serde::Serialize;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Serialize)]
struct Exported {
    location: String,
    output: PathBuf,
    /// Size of the disk in bytes.
    size: u64,
    /// How many of them were written; the others are holes.
    written: u64,
}

/// Writes the disk out of the cache. Asks no server; an interrupt leaves no file.
pub(super) async fn run(args: Export, json: bool) -> Result<()> {
    let options = args.reading.options()?;
    let location = reading::parse(&args.location)?.absolute()?;
    let missing = || {
        Error::refused(format!(
            "{location}: not all of it is in the cache: bring it there with `thinorigin warm`"
        ))
    };
    let store =
        options.store.as_ref().ok_or_else(|| Error::usage("without a cache there is nothing to export"))?;
    store.complete(&location).await.ok_or_else(missing)?;
    let image = Arc::new(Image::open(&location, &options).await?);
    let coverage = image.coverage().await?;
    if coverage.local < coverage.data {
        return Err(missing());
    }
    let output = Output::open(&args.output, image.virtual_size())?;
    let bar = output::progress(coverage.data, "exporting");
    let copy = async {
        for range in prefetch::stored(&image, 0..image.virtual_size()).await? {
            for step in steps(range) {
                copy_step(&image, &output, &step).await?;
                bar.add(step.end - step.start);
            }
        }
        Ok(())
    };
    let copied = tokio::select! {
        copied = copy => copied,
        interrupted = tokio::signal::ctrl_c() => Err(match interrupted {
            Ok(()) => Error::failed("interrupted: nothing was exported"),
            Err(error) => Error::failed(format!("cannot handle signals: {error}")),
        }),
    };
    bar.clear();
    copied?;
    output.finish()?;
    if json {
        let (size, written) = (image.virtual_size(), coverage.data);
        return output::json(&Exported {
            location: location.to_string(),
            output: args.output,
            size,
            written,
        });
    }
    output::line(&format!(
        "{}: {} of {}",
        args.output.display(),
        Size(coverage.data),
        Size(image.virtual_size())
    ))
}

async fn copy_step(image: &Image, output: &Output, step: &Range<u64>) -> Result<()> {
    let pieces = image.read(step.start, step.end - step.start).await?;
    let (file, path, mut at) = (output.file.clone(), output.target.clone(), step.start);
    let copy = move || {
        for piece in pieces {
            match piece {
                Piece::Zero(len) => at += len,
                Piece::Span(span) => {
                    write(&file, at, &span)
                        .map_err(|error| Error::io("cannot write", path.display(), &error))?;
                    at += span.len();
                }
            }
        }
        Ok(())
    };
    tokio::task::spawn_blocking(copy).await.map_err(|_| Error::failed("writing ended before its time"))?
}

fn write(file: &File, at: u64, span: &Span) -> io::Result<()> {
    match span {
        Span::Bytes(bytes) => file.write_all_at(bytes, at),
        Span::File { lease, offset, len } => copy(lease, *offset, file, at, *len),
    }
}

/// Copies in the kernel, where file systems can share what they hold, or else through memory.
fn copy(from: &Arc<Lease>, mut offset: u64, to: &File, mut at: u64, mut len: u64) -> io::Result<()> {
    while len > 0 {
        let most = usize::try_from(len).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(&**from, Some(&mut offset), to, Some(&mut at), most) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            // Both offsets have moved on.
            Ok(copied) => len -= copied as u64,
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    let mut buffer = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
    from.read_exact_at(&mut buffer, offset)?;
    to.write_all_at(&buffer, at)
}

/// Where the disk goes: a file under another name until it is whole, or a device.
struct Output {
    file: Arc<File>,
    target: PathBuf,
    partial: Option<PathBuf>,
}

impl Output {
    /// For a disk of `size` bytes at `target`: a block device that nothing uses and is large enough, which is emptied, or a
    /// name that nothing has.
    fn open(target: &Path, size: u64) -> Result<Output> {
        let failed = |what: &str, error: io::Error| Error::io(what, target.display(), &error);
        match std::fs::metadata(target) {
            Ok(metadata) if metadata.file_type().is_block_device() => {
                // With O_EXCL the kernel gives a block device to nobody who mounts it or builds on it, or has done so:
                // open(2). What is under a file system, in a volume group or below another device is not overwritten.
                let device =
                    File::options().write(true).custom_flags(OFlags::EXCL.bits().cast_signed()).open(target);
                let device = device.map_err(|error| match error.kind() {
                    io::ErrorKind::ResourceBusy => Error::refused(format!(
                        "{}: it is in use: mounted, or a part of another device or of a volume group",
                        target.display()
                    )),
                    _ => failed("cannot be written", error),
                })?;
                let room = rustix::fs::seek(&device, rustix::fs::SeekFrom::End(0))
                    .map_err(|errno| failed("its size cannot be found out", errno.into()))?;
                if room < size {
                    let what = format!("{}: {room} bytes, the disk has {size}", target.display());
                    return Err(Error::refused(what));
                }
                // What is not written must read as zeros (blkdev_issue_zeroout underneath).
                rustix::fs::fallocate(
                    &device,
                    FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
                    0,
                    room,
                )
                .map_err(|errno| failed("cannot be filled with zeros", errno.into()))?;
                Ok(Output { file: Arc::new(device), target: target.to_owned(), partial: None })
            }
            Ok(_) => Err(Error::refused(format!("{}: it exists already", target.display()))),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("cannot be looked at", error))
            }
            Err(_) => {
                let name = target.file_name().ok_or_else(|| Error::usage("the output has no name"))?;
                let partial = target.with_file_name(format!(".{}.partial", name.to_string_lossy()));
                let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&partial);
                let file = file.map_err(|error| failed("cannot be made", error))?;
                let output =
                    Output { file: Arc::new(file), target: target.to_owned(), partial: Some(partial) };
                output.file.set_len(size).map_err(|error| failed("cannot be made so large", error))?;
                Ok(output)
            }
        }
    }

    /// Makes it durable, under its own name.
    fn finish(mut self) -> Result<()> {
        let failed = |error: io::Error| Error::io("cannot be finished", self.target.display(), &error);
        self.file.sync_all().map_err(failed)?;
        if let Some(partial) = &self.partial {
            std::fs::rename(partial, &self.target).map_err(failed)?;
        }
        self.partial = None;
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some(partial) = &self.partial {
            // There is nobody left to tell.
            let _ = std::fs::remove_file(partial);
        }
    }
}
