//! A simulated host, what may happen to it, and controllers on it.

use super::ports::Port;
use super::{CHUNK, Sim, SimLv};
use crate::controller::{Controller, Options};
use crate::engine::World;
use crate::host::{Lock, Locks};
use std::cell::RefCell;
use std::rc::Rc;

/// What happens to a host that no verb does.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The server of the templates goes away: none can be opened.
    ServerLeaves,
    /// The templates that are open answer no reads.
    TemplatesHang,
    /// Half of every template is in the cache, and the rest not any more.
    CacheIsHalved,
    /// The volume of the records is damaged.
    RecordsAreLost,
    /// A later version of smctl writes the records, which this one does not know.
    RecordsAreOfALaterVersion,
    /// Guests write until the pool has little left.
    PoolFills,
    /// Guests have every attached VDI open.
    GuestsRun,
    /// Another process begins long work on the VDI of this name, and does not end.
    WorkGoesOn(&'static str),
    /// Somebody makes a volume group of this name, on a disk of his.
    GroupAppears(&'static str),
    /// Somebody makes and activates a volume of this name, which LVM calls a volume of this kind.
    VolumeAppears(String, &'static str),
    /// Volumes go whose names have this in them.
    VolumeGoes(&'static str),
    /// Volumes are deactivated whose names have this in them.
    VolumeStops(&'static str),
    /// Somebody uses the disk that an SR may be made on.
    DiskIsUsed,
    /// Somebody writes a file system to it.
    DiskIsFormatted,
}

/// A simulated host with one empty disk, `/dev/sda`. There are templates at every location whose last part is a number,
/// which is what all of their bytes are.
#[derive(Debug)]
pub struct Rig {
    pub(super) sim: Rc<RefCell<Sim>>,
    pub(super) run: tempfile::TempDir,
    /// What other processes hold.
    work: RefCell<Vec<Lock>>,
}

impl Default for Rig {
    fn default() -> Self {
        Self::new()
    }
}

impl Rig {
    /// A host without SRs.
    ///
    /// # Panics
    /// There is no temporary directory.
    pub fn new() -> Self {
        let run = tempfile::tempdir().expect("a directory");
        Self { sim: Rc::new(RefCell::new(Sim::new())), run, work: RefCell::default() }
    }

    /// What a new process has.
    pub fn process(&self, dry_run: bool) -> Controller {
        let port = || Port(Rc::clone(&self.sim));
        let world = World {
            lvm: Box::new(port()),
            dm: Box::new(port()),
            host: Box::new(port()),
            media: Box::new(port()),
            origins: Box::new(port()),
            thin: Box::new(port()),
            blocks: Box::new(port()),
        };
        let options = Options { run_dir: self.run.path().into(), dev_dir: "/dev/thinorigin".into(), dry_run };
        Controller::with(world, &options)
    }

    /// A process that does what it is told.
    #[cfg(test)]
    pub(super) fn controller(&self) -> Controller {
        self.process(false)
    }

    /// Everything that outlives a process, to be compared.
    pub fn world(&self) -> String {
        format!("{:#?}", self.sim.borrow())
    }

    /// Lets something happen.
    ///
    /// # Panics
    /// There is no volume group for a volume to come or go.
    pub fn happens(&self, event: Event) {
        let mut sim = self.sim.borrow_mut();
        match event {
            Event::ServerLeaves => sim.server = false,
            Event::TemplatesHang => sim.hung = true,
            Event::CacheIsHalved => sim.cached = (0..=u8::MAX).map(|content| (content, CHUNK)).collect(),
            Event::RecordsAreLost => sim.records = None,
            Event::RecordsAreOfALaterVersion => sim.later = true,
            Event::PoolFills => sim.ballast = sim.pool_chunks() * 85 / 100,
            Event::GuestsRun => sim.guests = true,
            Event::WorkGoesOn(name) => {
                let vdis = sim.records.iter().flat_map(|records| records.vdis.values());
                for vdi in vdis.filter(|vdi| vdi.name == name) {
                    let lock = Locks::new(self.run.path()).try_work(vdi.uuid);
                    self.work.borrow_mut().extend(lock.expect("a directory for locks"));
                }
            }
            Event::GroupAppears(name) => sim.group = Some((name.into(), Vec::new(), Vec::new())),
            Event::VolumeAppears(name, kind) => {
                let (kind, size) = (kind.to_owned(), super::ports::EXTENT);
                let lv =
                    SimLv { name: name.clone(), kind, size, tags: Vec::new(), bytes: Default::default() };
                sim.group.as_mut().expect("a group").2.push(lv);
                super::ports::activate(&mut sim, &name);
            }
            Event::VolumeGoes(part) => {
                sim.group.as_mut().expect("a group").2.retain(|lv| !lv.name.contains(part));
            }
            Event::VolumeStops(part) => {
                let volumes = sim.group.iter().flat_map(|group| &group.2);
                let names: Vec<_> =
                    volumes.map(|lv| lv.name.clone()).filter(|it| it.contains(part)).collect();
                names.iter().for_each(|name| super::ports::deactivate(&mut sim, name));
            }
            Event::DiskIsUsed => sim.disk_users.push("it is mounted at /srv".into()),
            Event::DiskIsFormatted => sim.disk_signatures.push("ext4".into()),
        }
    }
}
