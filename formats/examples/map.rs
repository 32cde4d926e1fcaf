//! Prints the map of a disk image: `cargo run --example map -- IMAGE`.
//!
//! Files that the image names are looked up in the image's own directory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use thinorigin_formats::memory::{Directory, Disk, ReadAt};
use thinorigin_formats::{Kind, Options};

struct OnDisk {
    file: File,
    len: u64,
}

impl ReadAt for OnDisk {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, at)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: map IMAGE")?;
    let path = Path::new(&path).canonicalize()?;
    let mut directory = Directory::new();
    for entry in path.parent().ok_or("the image has no directory")?.read_dir()? {
        let entry = entry?;
        if entry.file_type()?.is_file()
            && let Ok(file) = File::open(entry.path())
        {
            let len = entry.metadata()?.len();
            directory.add(&entry.file_name().to_string_lossy(), OnDisk { file, len });
        }
    }
    let name = path.file_name().ok_or("the image has no name")?.to_string_lossy();
    let mut disk = Disk::open(&directory, &name, Options::default())?;
    let size = disk.chain().virtual_size();
    for (depth, layer) in disk.chain().layers().iter().enumerate() {
        println!("layer {depth}: {}, {} bytes, {:?}", layer.format(), layer.virtual_size(), layer.info());
    }
    let mut at = 0;
    while at < size {
        let extent = disk.extent(at, size - at)?;
        let what = match extent.kind {
            Kind::Data { file, at } => format!("file {} at {at:#x}", file.0),
            Kind::Zero => "zero".to_owned(),
            Kind::Unallocated => "unallocated".to_owned(),
            Kind::Compressed(unit) => format!("compressed at {:#x}", unit.at),
        };
        println!("{:#14x} {:#14x} depth {} {what}", extent.start, extent.len, extent.layer);
        at += extent.len;
    }
    Ok(())
}
