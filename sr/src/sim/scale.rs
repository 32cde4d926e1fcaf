//! Time for each operation against the number of VDIs and the size of the image: a measurement, printed as a table.
//!
//! The kernel, LVM and the host are simulated and cost nothing; the records are redb in a file of the size that the
//! volume has, written and synced as on a device; and the metadata is a pool's with as many devices, made by
//! `thin_restore`. Every operation opens the records and closes them, as each `smctl` does. `benches/records` runs it.

use super::{Rig, ports};
use crate::catalog::{BlockMedia, Catalog, Media};
use crate::controller::{Controller, Options, SrCreate, VdiClone, VdiIntroduce};
use crate::engine::World;
use crate::error::Result;
use crate::record::{Body, Change, Ledger, SrRecord, Vdi};
use crate::thin::{MetadataReader, Root, Seen, ThinMetadata};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How often each operation is measured.
const ROUNDS: usize = 15;

/// Disks that are attached while the others are not.
const ATTACHED: usize = 100;

/// Records in this file, whichever device is asked for.
struct FileMedia(PathBuf);

impl Media for FileMedia {
    fn identify(&mut self, _: &Path) -> Result<Option<Uuid>> {
        BlockMedia.identify(&self.0)
    }

    fn format(&mut self, _: &Path, sr: &SrRecord, ledger: &Ledger, vdis: &[Vdi]) -> Result<()> {
        BlockMedia.format(&self.0, sr, ledger, vdis)
    }

    fn open(&mut self, _: &Path, sr: Uuid) -> Result<Box<dyn Catalog>> {
        BlockMedia.open(&self.0, sr)
    }

    fn look(&mut self, _: &Path, sr: Uuid) -> Result<Box<dyn Catalog>> {
        BlockMedia.look(&self.0, sr)
    }
}

/// Metadata in this file.
struct FileMetadata(PathBuf);

impl ThinMetadata for FileMetadata {
    fn usage(&mut self, _: &Path, root: Root) -> Result<Seen<BTreeMap<u32, u64>>> {
        MetadataReader.usage(&self.0, root)
    }

    fn usage_of(&mut self, _: &Path, root: Root, id: u32) -> Result<Seen<Option<u64>>> {
        MetadataReader.usage_of(&self.0, root, id)
    }

    fn mapped(&mut self, _: &Path, root: Root, id: u32) -> Result<Seen<Vec<Range<u64>>>> {
        MetadataReader.mapped(&self.0, root, id)
    }

    fn changed(&mut self, _: &Path, root: Root, a: u32, b: u32) -> Result<Seen<Vec<Range<u64>>>> {
        MetadataReader.changed(&self.0, root, a, b)
    }
}

/// Metadata of a pool with `count` devices, each with some blocks.
fn metadata(path: &Path, count: u32) {
    let mut text = String::from(
        "<superblock uuid=\"\" time=\"1\" transaction=\"5\" data_block_size=\"128\" nr_data_blocks=\"1000000\">\n",
    );
    for id in 1..=count {
        text += &format!(
            "<device dev_id=\"{id}\" mapped_blocks=\"8\" transaction=\"0\" creation_time=\"0\" snap_time=\"1\">\n\
             <range_mapping origin_begin=\"{id}\" data_begin=\"{}\" length=\"8\" time=\"0\"/>\n</device>\n",
            id * 8
        );
    }
    text += "</superblock>\n";
    let xml = path.with_extension("xml");
    std::fs::write(&xml, text).unwrap();
    std::fs::File::create(path).unwrap().set_len(128 << 20).unwrap();
    let (xml, path) = (xml.to_str().unwrap(), path.to_str().unwrap());
    let made = Command::new("thin_restore").args(["-i", xml, "-o", path]).output().expect("thin_restore");
    assert!(made.status.success(), "{made:?}");
}

/// An SR with a template of `image` bytes and `count` clones of it.
fn furnished(rig: &Rig, count: usize, image: u64) -> Controller {
    let port = || ports::Port(Rc::clone(&rig.sim));
    let (records, pool) = (rig.run.path().join("records"), rig.run.path().join("pool"));
    std::fs::File::create(&records).unwrap().set_len(64 << 20).unwrap();
    metadata(&pool, count as u32);
    let world = World {
        lvm: Box::new(port()),
        dm: Box::new(port()),
        host: Box::new(port()),
        media: Box::new(FileMedia(records.clone())),
        origins: Box::new(port()),
        blocks: Box::new(port()),
        thin: Box::new(FileMetadata(pool)),
    };
    let options = Options { run_dir: rig.run.path().into(), ..Options::default() };
    let mut smctl = Controller::with(world, &options);
    let create = SrCreate { name: "sr".into(), devices: vec!["/dev/sda".into()], ..SrCreate::default() };
    let sr = smctl.sr_create(&create).unwrap().record.unwrap().uuid;
    let introduce =
        VdiIntroduce { location: "7".into(), name: Some("template".into()), ..VdiIntroduce::default() };
    let template = smctl.vdi_introduce("sr", &introduce).unwrap().record.unwrap().uuid;
    let mut catalog = BlockMedia.open(&records, sr).unwrap();
    let mut template = catalog.vdi(template).unwrap().unwrap();
    template.virtual_size = image;
    let mut changes = vec![Change::Put(template.clone())];
    for id in 1..=count as u32 {
        rig.sim.borrow_mut().thins.insert(id, BTreeMap::new());
        changes.push(Change::Put(Vdi {
            uuid: Uuid::new_v4(),
            name: format!("a disk of somebody, number {id}"),
            body: Body::Thin { id },
            // The simulated template's device has a size of its own, so what is attached stands on none.
            origin: (id as usize > ATTACHED).then_some(template.uuid),
            parent: Some(template.uuid),
            read_only: false,
            ..template.clone()
        }));
    }
    let ledger = catalog.ledger().unwrap();
    changes.push(Change::Ledger(Ledger { next_thin_id: count as u32 + 1, ..ledger }));
    catalog.commit(&changes).unwrap();
    drop(catalog);
    for id in 1..=count.min(ATTACHED) {
        smctl.vdi_attach("sr", &format!("a disk of somebody, number {id}"), false).unwrap();
    }
    smctl
}

fn median(mut run: impl FnMut(usize)) -> Duration {
    let mut times: Vec<_> = (0..ROUNDS)
        .map(|round| {
            let start = Instant::now();
            run(round);
            start.elapsed()
        })
        .collect();
    times.sort();
    times[ROUNDS / 2]
}

fn row(count: usize, image: u64) {
    let rig = Rig::new();
    let mut smctl = furnished(&rig, count, image);
    let disk = format!("a disk of somebody, number {count}");
    let named = |what: &str, round| VdiClone { name: Some(format!("{what} {round}")), size: None };
    let uuid = smctl.vdi_info("sr", &disk).unwrap().uuid.to_string();
    let by_name = median(|_| drop(smctl.vdi_info("sr", &disk).unwrap()));
    let by_uuid = median(|_| drop(smctl.vdi_info("sr", &uuid).unwrap()));
    let list = median(|_| assert_eq!(smctl.vdi_list("sr").unwrap().len(), count + 1));
    let info = median(|_| assert_eq!(smctl.sr_info("sr").unwrap().disks, Some(count as u64)));
    let dump = median(|_| drop(smctl.sr_dump("sr").unwrap().to_text()));
    let clone = median(|round| drop(smctl.vdi_clone("sr", "template", &named("c", round)).unwrap()));
    let snapshot = median(|round| drop(smctl.vdi_snapshot("sr", &disk, &named("s", round)).unwrap()));
    let destroy = median(|round| drop(smctl.vdi_destroy("sr", &format!("s {round}")).unwrap()));
    let ms = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1e3);
    let image = image >> 30;
    let times = [by_name, by_uuid, list, info, dump, clone, snapshot, destroy].map(ms).join(" | ");
    println!("| {count} | {image} | {times} |");
}

#[test]
fn time_of_each_operation() {
    println!(
        "| VDIs | GiB each | vdi info, by name | by UUID | vdi list | sr info | sr dump | clone | snapshot | destroy |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for count in [10, 100, 1_000, 10_000] {
        row(count, 1 << 30);
    }
    row(100, 1 << 40);
    row(100, 60 << 40);
}
