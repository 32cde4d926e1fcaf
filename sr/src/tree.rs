//! An SR from the bottom to the top, as nodes in nodes: disk, volume group, pool, disk, user; and image, kernel device,
//! origin, disk.

use crate::view::VdiInfo;
use crate::volumes::{HostVolume, VolumeKind};
use serde::Serialize;
use std::path::PathBuf;
use uuid::Uuid;

/// What a [`Node`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeKind {
    /// A disk, partition or other block device of the host.
    Device,
    /// The volume group.
    VolumeGroup,
    /// The thin pool.
    Pool,
    /// The volume of the records.
    Records,
    /// Another logical volume of the SR, as the copy of a template that was localised.
    Volume,
    /// A logical volume that is not the SR's.
    ForeignVolume,
    /// An image elsewhere.
    Template,
    /// The kernel's device of an image.
    Nbd,
    /// The image, padded, as origin of thin devices.
    Origin,
    /// A disk of the SR.
    Disk,
    /// Who uses a disk's device.
    User,
}

/// One thing, and what stands on it. The field names are what `--json` prints, and stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Node {
    /// What it is.
    pub kind: NodeKind,
    /// What people call it.
    pub name: String,
    /// The VDI that it is or belongs to.
    pub uuid: Option<Uuid>,
    /// Its device node.
    pub path: Option<PathBuf>,
    /// Its size, in bytes.
    pub size: Option<u64>,
    /// Bytes of its own that are in use, of a disk; free, of a volume group. `None` where that is not known.
    pub bytes: Option<u64>,
    /// Where a template's image is.
    pub location: Option<String>,
    /// What stands on it.
    pub children: Vec<Node>,
}

/// An SR.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tree {
    /// The SR.
    pub uuid: Uuid,
    /// What people call it.
    pub name: String,
    /// Whether it is attached: of one that is not, no disks and templates are known.
    pub attached: bool,
    /// Why of one that is attached none are known either, in a sentence.
    pub error: Option<String>,
    /// From the host's disks up. What stands on several is under the first of them.
    pub storage: Vec<Node>,
    /// From the templates' images up.
    pub templates: Vec<Node>,
}

/// What an attached SR tells.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) pool_lv: String,
    pub(crate) disks: Vec<Disk>,
    pub(crate) templates: Vec<Template>,
}

/// A disk and who uses its device.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) info: VdiInfo,
    pub(crate) users: Vec<String>,
}

/// A template and its devices.
#[derive(Debug)]
pub(crate) struct Template {
    pub(crate) uuid: Uuid,
    pub(crate) name: String,
    pub(crate) location: String,
    pub(crate) size: u64,
    /// The padded device.
    pub(crate) device: Option<PathBuf>,
    /// The device of the image itself.
    pub(crate) served_by: Option<PathBuf>,
}

impl Node {
    fn new(kind: NodeKind, name: impl Into<String>) -> Self {
        Self {
            kind,
            name: name.into(),
            uuid: None,
            path: None,
            size: None,
            bytes: None,
            location: None,
            children: Vec::new(),
        }
    }

    fn of_volume(kind: NodeKind, volume: &HostVolume) -> Self {
        let (path, size, bytes) = (volume.path.clone(), volume.size, volume.free);
        Self { path, size, bytes, ..Self::new(kind, volume.id.clone()) }
    }
}

impl Tree {
    /// The tree of an SR in the group `vg` of `host`; `seen` if it is attached.
    pub(crate) fn grow(uuid: Uuid, name: &str, vg: &str, host: &[HostVolume], seen: Option<Seen>) -> Self {
        let attached = seen.is_some();
        let seen = seen.unwrap_or_default();
        let group = host.iter().find(|volume| volume.kind == VolumeKind::VolumeGroup && volume.id == vg);
        let mut storage = Vec::new();
        if let Some(group) = group {
            let mut full = Some(Node {
                children: volumes(uuid, vg, host, &seen),
                ..Node::of_volume(NodeKind::VolumeGroup, group)
            });
            for device in &group.on {
                let leaf = full.take().unwrap_or_else(|| Node::of_volume(NodeKind::VolumeGroup, group));
                storage.push(down(device, host, leaf));
            }
        }
        let templates = seen.templates.iter().map(|template| image(template, &seen.disks)).collect();
        Self { uuid, name: name.to_owned(), attached, error: None, storage, templates }
    }
}

/// What a device stands on, with the device and then `leaf` at the end.
fn down(id: &str, host: &[HostVolume], leaf: Node) -> Node {
    let mut node = leaf;
    let mut next = Some(id.to_owned());
    let mut levels = host.len();
    while let Some(id) = next.take() {
        let Some(volume) = host.iter().find(|volume| volume.id == id) else {
            return Node { children: vec![node], ..Node::new(NodeKind::Device, id) };
        };
        let kind = match volume.kind {
            VolumeKind::VolumeGroup => NodeKind::VolumeGroup,
            _ => NodeKind::Device,
        };
        node = Node { children: vec![node], ..Node::of_volume(kind, volume) };
        levels = levels.saturating_sub(1);
        next = volume.on.first().filter(|_| levels > 0).cloned();
    }
    node
}

/// The volumes of the SR's group. Of those that are not the SR's only the names are told.
fn volumes(sr: Uuid, vg: &str, host: &[HostVolume], seen: &Seen) -> Vec<Node> {
    let records = format!("{vg}/{}", crate::names::meta_lv(sr));
    let pool_lv = if seen.pool_lv.is_empty() { crate::names::pool_lv(sr) } else { seen.pool_lv.clone() };
    let pool = format!("{vg}/{pool_lv}");
    let mut nodes = Vec::new();
    for volume in host.iter().filter(|volume| volume.on.iter().any(|on| on == vg)) {
        if volume.id == records {
            nodes.push(Node::of_volume(NodeKind::Records, volume));
        } else if volume.id == pool {
            let disks = seen.disks.iter().filter(|disk| !disk.info.preallocated).map(disk_node).collect();
            nodes.push(Node { children: disks, ..Node::of_volume(NodeKind::Pool, volume) });
        } else if let Some(disk) = seen
            .disks
            .iter()
            .find(|disk| volume.id == format!("{vg}/{}", crate::names::thick_lv(sr, disk.info.uuid)))
        {
            nodes.push(disk_node(disk));
        } else {
            let lv = volume.id.rsplit('/').next().unwrap_or_default();
            let ours = crate::names::sr_of_lv(lv) == Some(sr);
            let kind = if ours { NodeKind::Volume } else { NodeKind::ForeignVolume };
            nodes.push(Node::of_volume(kind, volume));
        }
    }
    nodes
}

fn disk_node(disk: &Disk) -> Node {
    Node {
        uuid: Some(disk.info.uuid),
        path: disk.info.device.clone(),
        size: Some(disk.info.virtual_size),
        bytes: disk.info.physical_utilisation,
        children: disk.users.iter().map(|user| Node::new(NodeKind::User, user.clone())).collect(),
        ..Node::new(NodeKind::Disk, disk.info.name.clone())
    }
}

/// A template: its image, the kernel's device while there is one, the origin on that, and the disks that show it.
fn image(template: &Template, disks: &[Disk]) -> Node {
    let shows = disks.iter().filter(|disk| disk.info.origin == Some(template.uuid));
    // Attached disks stand on the origin; others will, once they are attached.
    let (attached, others): (Vec<_>, Vec<_>) = shows.partition(|disk| disk.info.attached);
    let leaf = |disk: &&Disk| Node { children: Vec::new(), ..disk_node(disk) };
    let attached: Vec<_> = attached.iter().map(leaf).collect();
    let mut children = match &template.device {
        Some(device) => vec![Node {
            uuid: Some(template.uuid),
            path: Some(device.clone()),
            children: attached,
            ..Node::new(NodeKind::Origin, "origin")
        }],
        None => attached,
    };
    if let Some(device) = &template.served_by {
        let name = device.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let nbd = Node::new(NodeKind::Nbd, name);
        children = vec![Node { path: Some(device.clone()), size: Some(template.size), children, ..nbd }];
    }
    children.extend(others.iter().map(leaf));
    Node {
        uuid: Some(template.uuid),
        size: Some(template.size),
        location: Some(template.location.clone()),
        children,
        ..Node::new(NodeKind::Template, template.name.clone())
    }
}
