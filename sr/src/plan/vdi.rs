//! Plans for VDIs.

use super::step::{Step, size_text};
use super::thick::Space;
use super::{local, thick};
use crate::dm::{Device, DeviceNumber, PoolMode, PoolStatus, Table, Target};
use crate::error::{Error, Result};
use crate::record::{Body, Intent, Ledger, LocalCopy, Source, SrRecord, THIN_ID_MAX, Vdi};
use std::path::PathBuf;
use uuid::Uuid;

/// Length of every template's padded device: 1 PiB.
///
/// A thin device that is longer than its origin reads zeros beyond it, but only while the pool can be written; in a
/// full or read-only pool it reads errors. So the origin is longer than any VDI. Zeros cost nothing.
pub(crate) const ORIGIN_LEN: u64 = 1 << 50;

/// What is wanted of a VDI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// No operation on the pool is unfinished.
    Settled,
    /// It has this record, as a new template, or with another name or size.
    Recorded(Vdi),
    /// It exists as a thin device. The record's device id is chosen by the plan.
    Made { vdi: Vdi, from: Option<Uuid> },
    /// It has the content of a snapshot, in a device of this id.
    Reverted { from: Uuid, id: u32 },
    /// It does not exist.
    Gone,
    /// It has a device and a link.
    Attached { read_only: bool },
    /// It has neither.
    Detached,
    /// It is as attached as it nearly is: a whole device is kept and mended, anything less goes.
    Mended,
    /// It has a volume for a preallocated VDI of this record, which may hold anything beyond what is recorded.
    Reserved(Vdi),
    /// Its volume, if it is or was to be a preallocated one, is as the record says, and gone without one.
    Trimmed,
    /// Its template is a block device, padded, whether anybody stands on it or not.
    Shown,
    /// Nothing of its template, or of itself if it is one, is open for nobody.
    Released,
    /// The template has a volume for a copy of these runs, which is not ready.
    RoomMade(LocalCopy),
    /// The template's copy, which is on its volume and was read back, is what VDIs read.
    Localised,
    /// The template has no copy in the SR.
    Delocalised,
    /// The VDI, in the thin device of this id that holds all of its template that it needs, does without that.
    Independent { id: u32 },
}

/// What there is of a template under VDIs.
#[derive(Clone, Debug)]
pub(crate) struct OriginSeen {
    pub(crate) template: Vdi,
    /// The block device that the template is now.
    pub(crate) device: Option<(DeviceNumber, u64)>,
    /// Its padded device.
    pub(crate) pad: Option<Device>,
    /// The active volume of its local copy.
    pub(crate) local: Option<Device>,
    /// The volume group as to local copies, where the goal needs to know.
    pub(crate) room: Option<local::Room>,
}

/// What there is of an SR, as far as it concerns one VDI.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) sr: SrRecord,
    pub(crate) ledger: Ledger,
    /// The VDI in question.
    pub(crate) uuid: Uuid,
    pub(crate) pool: DeviceNumber,
    pub(crate) status: PoolStatus,
    /// The VDI's record.
    pub(crate) vdi: Option<Vdi>,
    /// Its device.
    pub(crate) device: Option<Device>,
    /// Who uses that device, apart from tables of ours.
    pub(crate) users: Vec<String>,
    /// Its link.
    pub(crate) link: Option<PathBuf>,
    /// The logical volume of a preallocated VDI.
    pub(crate) volume: Option<Device>,
    /// Its template, or itself if it is one.
    pub(crate) origin: Option<OriginSeen>,
    /// What it is to be made from, or reverted to.
    pub(crate) source: Option<Vdi>,
    /// What the unfinished operation makes a snapshot of, if it is attached.
    pub(crate) suspect: Option<(Uuid, Device)>,
    /// How many VDIs have this one as their template.
    pub(crate) descendants: u64,
    /// The volume group as to its volume, where the goal needs to know.
    pub(crate) space: Option<Space>,
    /// Whether a device of its flattening is left.
    pub(crate) scratch: bool,
}

impl Seen {
    pub(super) fn vdi(&self) -> Result<&Vdi> {
        self.vdi
            .as_ref()
            .ok_or_else(|| Error::not_found(format!("SR '{}' has no VDI {}", self.sr.name, self.uuid)))
    }
}

/// What is left to do for `goal`.
///
/// # Errors
/// The world does not allow the goal.
pub(crate) fn plan_vdi(goal: &Goal, seen: &Seen) -> Result<Vec<Step>> {
    let pending = match (&seen.ledger.intent, goal) {
        // What is recorded is what is wanted: it goes on where it stopped.
        (Some(intent @ Intent::Make { vdi, .. }), Goal::Made { .. }) if vdi.uuid == seen.uuid => {
            return go_on(intent, seen);
        }
        (Some(intent @ Intent::Make { vdi, .. }), Goal::Reverted { id, .. })
            if vdi.uuid == seen.uuid && vdi.thin_id() == Some(*id) =>
        {
            return go_on(intent, seen);
        }
        (Some(intent), _) => settle(intent, seen)?,
        (None, _) => {
            check_ledger(seen)?;
            Vec::new()
        }
    };
    if seen.scratch {
        return Ok(local::remove_scratch(seen));
    }
    if !pending.is_empty() {
        // An operation that a crash cut short comes first, and what follows is planned when it is out of the way.
        return Ok(pending);
    }
    match goal {
        Goal::Settled => Ok(Vec::new()),
        Goal::Recorded(vdi) => recorded(vdi, seen),
        Goal::Made { vdi, from } => make(vdi, *from, seen),
        Goal::Reverted { id, .. } => revert(*id, seen),
        Goal::Gone => gone(seen),
        Goal::Attached { read_only } => attach(*read_only, seen),
        Goal::Detached => detach(seen),
        Goal::Mended => mend(seen),
        Goal::Reserved(vdi) => thick::reserve(vdi, seen),
        Goal::Trimmed => thick::trim(seen),
        Goal::Shown => Ok(seen.origin.iter().flat_map(|origin| open_origin(origin, seen)).collect()),
        Goal::Released => Ok(release_origin(seen, 0)),
        Goal::RoomMade(copy) => local::make_room(copy, seen),
        Goal::Localised => local::localise(seen),
        Goal::Delocalised => local::delocalise(seen),
        Goal::Independent { id } => local::become_independent(*id, seen),
    }
}

fn check_ledger(seen: &Seen) -> Result<()> {
    let (recorded, actual) = (seen.ledger.transaction_id, seen.status.transaction_id);
    if recorded == actual {
        return Ok(());
    }
    Err(Error::failed(format!(
        "the thin pool of SR '{}' has transaction id {actual}, and its records are of {recorded}: \
         somebody else changed the pool, or the records are an old copy",
        seen.sr.name
    )))
}

/// Finishes or undoes what a crash cut short.
fn settle(intent: &Intent, seen: &Seen) -> Result<Vec<Step>> {
    let from = seen.ledger.transaction_id;
    let mut steps = Vec::new();
    // A device that was suspended for a snapshot has somebody waiting for it.
    if let Some((vdi, device)) = &seen.suspect
        && device.suspended
    {
        steps.push(Step::Resume { vdi: *vdi });
    }
    if seen.status.transaction_id == from + 1 {
        steps.push(Step::Commit(intent.clone()));
    } else if seen.status.transaction_id == from {
        match intent {
            // Nobody was told that it was made.
            Intent::Make { .. } => steps.push(Step::Undo(intent.clone())),
            // The record is gone, so the device must go.
            Intent::Drop { .. } => steps.extend(go_on(intent, seen)?),
        }
    } else {
        check_ledger(seen)?;
    }
    Ok(steps)
}

/// What is left of an operation whose intent is recorded.
fn go_on(intent: &Intent, seen: &Seen) -> Result<Vec<Step>> {
    let commit = Step::Commit(intent.clone());
    let from = seen.ledger.transaction_id;
    let mut steps = if seen.status.transaction_id == from + 1 {
        vec![commit]
    } else if seen.status.transaction_id == from {
        check_writable(seen)?;
        vec![Step::Perform(intent.clone()), commit]
    } else {
        check_ledger(seen)?;
        Vec::new()
    };
    if let Intent::Make { replaces: Some(id), .. } = intent {
        steps.extend(drop_thin(*id));
    }
    Ok(steps)
}

fn operation(intent: &Intent) -> Vec<Step> {
    let mut steps =
        vec![Step::RecordIntent(intent.clone()), Step::Perform(intent.clone()), Step::Commit(intent.clone())];
    if let Intent::Make { replaces: Some(id), .. } = intent {
        steps.extend(drop_thin(*id));
    }
    steps
}

/// What follows the commit that put a new device in place of `id`; that commit records the intent.
fn drop_thin(id: u32) -> [Step; 2] {
    let intent = Intent::Drop { id };
    [Step::Perform(intent.clone()), Step::Commit(intent)]
}

fn check_writable(seen: &Seen) -> Result<()> {
    match seen.status.mode {
        PoolMode::ReadWrite | PoolMode::OutOfDataSpace => Ok(()),
        PoolMode::ReadOnly | PoolMode::Failed => Err(Error::failed(format!(
            "the thin pool of SR '{}' cannot be written: its metadata has failed, and 'lvconvert --repair {}/{}' may mend it",
            seen.sr.name, seen.sr.vg, seen.sr.pool_lv
        ))),
    }
}

fn recorded(vdi: &Vdi, seen: &Seen) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    if seen.vdi.as_ref() != Some(vdi) {
        steps.push(Step::Put(Box::new(vdi.clone())));
    }
    if let Some(device) = &seen.device
        && device.table.as_ref().is_some_and(|table| table.bytes() < vdi.virtual_size)
    {
        steps.push(map(vdi, device.read_only));
    }
    Ok(steps)
}

fn make(vdi: &Vdi, from: Option<Uuid>, seen: &Seen) -> Result<Vec<Step>> {
    if seen.vdi.is_some() {
        return Ok(Vec::new());
    }
    check_writable(seen)?;
    let source = match (&seen.source, from) {
        (Some(source), _) => Some(source),
        (None, Some(uuid)) => {
            return Err(Error::not_found(format!("SR '{}' has no VDI {uuid}", seen.sr.name)));
        }
        (None, None) => None,
    };
    if vdi.virtual_size > ORIGIN_LEN || vdi.virtual_size == 0 {
        return Err(Error::refused(format!(
            "a VDI cannot have {}: the size must be more than nothing, and at most {}",
            size_text(vdi.virtual_size),
            size_text(ORIGIN_LEN)
        )));
    }
    if let Some(source) = source {
        if vdi.virtual_size < source.virtual_size {
            return Err(Error::refused(format!(
                "a clone of '{}' cannot have {}, for that is less than the {} of '{}'",
                source.name,
                size_text(vdi.virtual_size),
                size_text(source.virtual_size),
                source.name
            )));
        }
        if source.body == Body::Thick {
            return Err(Error::refused(format!(
                "VDI '{}' is preallocated and cannot be cloned or snapshotted",
                source.name
            )));
        }
    }
    let id = seen.ledger.next_thin_id;
    if id > THIN_ID_MAX {
        return Err(Error::refused(format!(
            "SR '{}' has used every one of its {THIN_ID_MAX} thin device ids",
            seen.sr.name
        )));
    }
    let mut vdi = vdi.clone();
    vdi.body = Body::Thin { id };
    let from = source.and_then(|source| Some(Source { vdi: source.uuid, id: source.thin_id()? }));
    Ok(operation(&Intent::Make { vdi: Box::new(vdi), from, replaces: None }))
}

fn revert(new: u32, seen: &Seen) -> Result<Vec<Step>> {
    let vdi = seen.vdi()?;
    if vdi.thin_id() == Some(new) {
        return Ok(Vec::new());
    }
    let Some(source) = &seen.source else {
        return Err(Error::not_found(format!("SR '{}' has no such snapshot", seen.sr.name)));
    };
    refuse_attached(vdi, seen, "reverted")?;
    let (Some(old), Some(id)) = (vdi.thin_id(), source.thin_id()) else {
        return Err(Error::refused("only a thin VDI can be reverted, and only to a snapshot"));
    };
    if source.snapshot_of != Some(vdi.uuid) {
        return Err(Error::refused(format!("'{}' is no snapshot of VDI '{}'", source.name, vdi.name)));
    }
    check_writable(seen)?;
    let mut reverted = vdi.clone();
    reverted.body = Body::Thin { id: new };
    reverted.virtual_size = source.virtual_size;
    // The one may have been flattened since the other was made.
    reverted.origin = source.origin;
    Ok(operation(&Intent::Make {
        vdi: Box::new(reverted),
        from: Some(Source { vdi: source.uuid, id }),
        replaces: Some(old),
    }))
}

fn refuse_attached(vdi: &Vdi, seen: &Seen, what: &str) -> Result<()> {
    if seen.device.is_none() {
        return Ok(());
    }
    let why = match seen.users.first() {
        Some(user) => format!(" and {user}"),
        None => String::new(),
    };
    Err(Error::refused(format!(
        "VDI '{}' ({}) is attached{why}, and an attached VDI cannot be {what}",
        vdi.name, vdi.uuid
    )))
}

fn gone(seen: &Seen) -> Result<Vec<Step>> {
    let Some(vdi) = &seen.vdi else {
        return Ok(leftovers(seen));
    };
    if seen.descendants > 0 {
        let (number, verb) = match seen.descendants {
            1 => ("1 VDI".to_owned(), "shows"),
            n => (format!("{n} VDIs"), "show"),
        };
        return Err(Error::refused(format!(
            "{number} still {verb} data of template '{}' ({}): destroy what was cloned from it first",
            vdi.name, vdi.uuid
        )));
    }
    refuse_attached(vdi, seen, "destroyed")?;
    let mut steps = leftovers(seen);
    match vdi.body {
        Body::Template { .. } => {
            steps.extend(local::give_up(seen));
            steps.push(Step::RemoveRecord { vdi: vdi.uuid, name: vdi.name.clone() });
        }
        Body::Thin { id } => {
            check_writable(seen)?;
            steps.push(Step::RecordIntent(Intent::Drop { id }));
            steps.extend(drop_thin(id));
        }
        // Its volume goes when it is trimmed, for then no record says that anybody has it.
        Body::Thick => steps.push(Step::RemoveRecord { vdi: vdi.uuid, name: vdi.name.clone() }),
    }
    Ok(steps)
}

/// Takes away what of a VDI that is not attached a crash may have left: its link, and a template that nobody uses.
fn leftovers(seen: &Seen) -> Vec<Step> {
    let mut steps = Vec::new();
    if seen.link.is_some() {
        steps.push(Step::Unlink { vdi: seen.uuid });
    }
    steps.extend(release_origin(seen, 0));
    steps
}

/// Takes the template away if nobody has its padded device open except `ours` tables that are to go.
pub(super) fn release_origin(seen: &Seen, ours: u32) -> Vec<Step> {
    let Some(origin) = &seen.origin else {
        return Vec::new();
    };
    let template = origin.template.uuid;
    let mut steps = Vec::new();
    match &origin.pad {
        Some(pad) if pad.open_count > ours => return steps,
        Some(_) => steps.push(Step::UnmapOrigin { template }),
        None => {}
    }
    if origin.device.is_some() {
        steps.push(Step::CloseOrigin { template });
    }
    if origin.local.is_some() {
        steps.push(Step::Deactivate { vg: seen.sr.vg.clone(), lv: local::volume(seen, template) });
    }
    steps
}

fn attach(read_only: bool, seen: &Seen) -> Result<Vec<Step>> {
    let vdi = seen.vdi()?;
    let read_only = read_only || vdi.read_only;
    let mut steps = Vec::new();
    if vdi.body == Body::Thick && seen.volume.is_none() {
        steps.push(Step::Activate {
            vg: seen.sr.vg.clone(),
            lv: crate::names::thick_lv(seen.sr.uuid, vdi.uuid),
        });
    }
    if let Some(origin) = &seen.origin {
        steps.extend(open_origin(origin, seen));
    }
    match &seen.device {
        Some(device) if device.table.is_some() => {
            if device.read_only != read_only {
                let (is, not) =
                    if device.read_only { ("read-only", "read-write") } else { ("read-write", "read-only") };
                return Err(Error::refused(format!(
                    "VDI '{}' ({}) is attached {is} already, not {not}",
                    vdi.name, vdi.uuid
                )));
            }
            steps.extend(mend_device(vdi, device, seen)?);
        }
        Some(_) | None => steps.push(map(vdi, read_only)),
    }
    let target = seen.device.as_ref().map(|device| device.number.dm_node());
    if target.is_none() || seen.link != target {
        steps.push(Step::Link { vdi: vdi.uuid });
    }
    Ok(steps)
}

pub(super) fn map(vdi: &Vdi, read_only: bool) -> Step {
    Step::MapVdi { vdi: vdi.uuid, name: vdi.name.clone(), read_only }
}

/// Makes a template ready under its VDIs.
pub(super) fn open_origin(origin: &OriginSeen, seen: &Seen) -> Vec<Step> {
    let template = &origin.template;
    if template.local_ready().is_some() {
        return local::open(origin, seen);
    }
    let mut steps = Vec::new();
    if origin.device.is_none() {
        steps.push(open_device(template));
    }
    // An origin that is not open may come back as another device; until then the pad is as good as it can be.
    let right = match (&origin.pad, origin.table()) {
        (Some(pad), Some(table)) => pad.table.as_ref() == Some(&table) && !pad.suspended,
        (Some(pad), None) => pad.table.is_some() && !pad.suspended,
        (None, _) => false,
    };
    if !right {
        steps.push(Step::MapOrigin { template: template.uuid });
    }
    steps
}

/// Makes a template a block device by the server.
pub(super) fn open_device(template: &Vdi) -> Step {
    let location = match &template.body {
        Body::Template { location, .. } => location.clone(),
        Body::Thin { .. } | Body::Thick => String::new(),
    };
    Step::OpenOrigin { template: template.uuid, name: template.name.clone(), location }
}

/// The table that a VDI's device must have; `None` while what it stands on is missing.
///
/// A VDI whose record has an origin never gets a table without it: the blocks that are not mapped would read as
/// zeros, and nobody would notice before the guest does.
pub(crate) fn expected_table(vdi: &Vdi, seen: &Seen) -> Option<Table> {
    let pad = seen.origin.as_ref().map(|origin| origin.pad.as_ref());
    let target = match vdi.body {
        Body::Template { .. } => Target::Linear { device: pad??.number, offset: 0 },
        Body::Thin { id } => Target::Thin {
            pool: seen.pool,
            id,
            origin: match (vdi.origin, pad) {
                (None, _) => None,
                (Some(_), pad) => Some(pad??.number),
            },
        },
        Body::Thick => Target::Linear { device: seen.volume.as_ref()?.number, offset: 0 },
    };
    Some(Table::single(vdi.virtual_size, target))
}

/// What a device that is there lacks.
fn mend_device(vdi: &Vdi, device: &Device, seen: &Seen) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    let (Some(live), Some(expected)) = (&device.table, expected_table(vdi, seen)) else {
        return Ok(vec![map(vdi, device.read_only)]);
    };
    if *live != expected {
        // A resize that was cut short leaves the same target with an older length, a flattening the origin that is not
        // needed any more. Anything else is not our doing.
        let ours = live.only() == expected.only() || local::differs_by_origin(live, &expected);
        if !ours || live.bytes() > expected.bytes() {
            return Err(Error::failed(format!(
                "the device of VDI '{}' ({}) has the table '{live}', and its record needs '{expected}'",
                vdi.name, vdi.uuid
            )));
        }
        steps.push(map(vdi, device.read_only));
    } else if device.suspended {
        steps.push(Step::Resume { vdi: vdi.uuid });
    }
    Ok(steps)
}

fn detach(seen: &Seen) -> Result<Vec<Step>> {
    let name = match &seen.vdi {
        Some(vdi) => vdi.name.clone(),
        // A device without a record is debris of ours, and goes.
        None if seen.device.is_some() || seen.link.is_some() => seen.uuid.to_string(),
        None => seen.vdi()?.name.clone(),
    };
    if let Some(device) = &seen.device
        && device.open_count > 0
    {
        let by = match seen.users.as_slice() {
            [] => "open in a process".to_owned(),
            users => users.join(", "),
        };
        return Err(Error::refused(format!("VDI '{name}' ({}) is in use: {by}", seen.uuid)));
    }
    let mut steps = Vec::new();
    if seen.link.is_some() {
        steps.push(Step::Unlink { vdi: seen.uuid });
    }
    let mut ours = 0;
    if let Some(device) = &seen.device {
        steps.push(Step::UnmapVdi { vdi: seen.uuid, name });
        ours = u32::from(device.table.is_some());
    }
    if let Some(volume) = &seen.volume
        && volume.open_count <= ours
    {
        steps.push(Step::Deactivate {
            vg: seen.sr.vg.clone(),
            lv: crate::names::thick_lv(seen.sr.uuid, seen.uuid),
        });
    }
    steps.extend(release_origin(seen, ours));
    Ok(steps)
}

fn mend(seen: &Seen) -> Result<Vec<Step>> {
    let whole = seen.device.as_ref().filter(|device| device.table.is_some());
    match (whole, &seen.vdi) {
        (Some(device), Some(_)) => {
            let mut steps = attach(device.read_only, seen)?;
            steps.extend(local::clear(seen));
            Ok(steps)
        }
        _ => {
            if seen.device.is_none() && seen.link.is_none() {
                let mut steps = leftovers(seen);
                steps.extend(local::clear(seen));
                return Ok(steps);
            }
            detach(seen)
        }
    }
}
