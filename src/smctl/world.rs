//! How `smctl` shows the host's volumes and the trees that stand on them.

use super::origins::Server;
use super::show;
use crate::error::Result;
use crate::export::Progress;
use crate::output;
use crate::size::Size;
use serde::Serialize;
use sr::{HostVolume, Node, NodeKind, Tree, VolumeKind};
use std::collections::BTreeMap;
use uuid::Uuid;

/// A list of the host's volumes.
pub(super) fn volumes(volumes: &[HostVolume], json: bool) -> Result<()> {
    if json {
        return output::json(&volumes);
    }
    let row = |volume: &HostVolume| {
        let role = match (volume.pool, volume.volume) {
            (true, true) => "pool, volume",
            (true, false) => "pool",
            (false, true) => "volume",
            (false, false) => "-",
        };
        let path = volume.path.as_ref().map(|path| path.display().to_string());
        vec![
            volume.id.clone(),
            word(volume.kind),
            size(volume.size),
            volume.location.to_owned(),
            volume.access.to_owned(),
            role.to_owned(),
            path.unwrap_or_else(|| "-".into()),
            if volume.on.is_empty() { "-".into() } else { volume.on.join(" ") },
        ]
    };
    let header = ["volume", "kind", "size", "location", "access", "role", "path", "on"];
    output::table(&header, volumes.iter().map(row))
}

fn word(kind: VolumeKind) -> String {
    match kind {
        VolumeKind::Disk => "disk",
        VolumeKind::Partition => "partition",
        VolumeKind::Raid => "RAID",
        VolumeKind::Loop => "loop",
        VolumeKind::Nbd => "NBD",
        VolumeKind::Origin => "origin",
        VolumeKind::Vdi => "VDI",
        VolumeKind::DeviceMapper => "device-mapper",
        VolumeKind::VolumeGroup => "volume group",
        VolumeKind::LogicalVolume => "logical volume",
        VolumeKind::ThinPool => "thin pool",
        VolumeKind::FileSystem => "file system",
    }
    .to_owned()
}

fn size(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "-".to_owned(), |bytes| Size(bytes).to_string())
}

/// A tree as `--json` prints it: with how much of each template is local, by the template's UUID.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    tree: Tree,
    local: BTreeMap<Uuid, Progress>,
}

/// What stands on what, and how much of each template that has a device is local.
pub(super) fn trees(trees: Vec<Tree>, server: &Server, json: bool) -> Result<()> {
    let progress = match trees.iter().any(|tree| tree.attached) {
        true => server.progress_of_all(),
        false => BTreeMap::new(),
    };
    let shown: Vec<_> = trees
        .into_iter()
        .map(|mut tree| {
            tree.templates.iter_mut().for_each(redact);
            let ours = tree.templates.iter().filter_map(|template| template.uuid);
            let local = ours.filter_map(|uuid| Some((uuid, *progress.get(&uuid)?))).collect();
            Shown { tree, local }
        })
        .collect();
    if json {
        return output::json(&shown);
    }
    for Shown { tree, local } in &shown {
        let state = match (&tree.error, tree.attached) {
            (Some(error), _) => format!(", unreadable: {error}"),
            (None, true) => String::new(),
            (None, false) => ", detached: its disks and templates are not known".to_owned(),
        };
        output::line(&format!("{} (SR {}{state})", tree.name, tree.uuid))?;
        let mut lines = Vec::new();
        let roots: Vec<_> = tree.storage.iter().chain(&tree.templates).collect();
        branch(&roots, "", local, &mut lines);
        lines.iter().try_for_each(|line| output::line(line))?;
    }
    Ok(())
}

fn redact(node: &mut Node) {
    node.location = node.location.as_deref().map(show::location);
}

/// The lines of `nodes`, each with what stands on it.
fn branch(nodes: &[&Node], indent: &str, local: &BTreeMap<Uuid, Progress>, lines: &mut Vec<String>) {
    for (number, node) in nodes.iter().enumerate() {
        let last = number + 1 == nodes.len();
        let (mark, below) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        lines.push(format!("{indent}{mark}{}", describe(node)));
        let mut indent = format!("{indent}{below}");
        let children: Vec<_> = node.children.iter().collect();
        // What is local of an image is between the image and its device.
        if let (NodeKind::Template, Some(progress)) = (node.kind, node.uuid.and_then(|uuid| local.get(&uuid)))
        {
            lines.push(format!("{indent}└─ cache  {} local", progress.words()));
            indent.push_str("   ");
        }
        branch(&children, &indent, local, lines);
    }
}

/// One line about a node.
fn describe(node: &Node) -> String {
    let path = |text: &mut String| {
        if let Some(path) = &node.path {
            text.push_str(&format!("  {}", path.display()));
        }
    };
    let (size, bytes) = (size(node.size), size(node.bytes));
    let mut text = match node.kind {
        NodeKind::Template => {
            return format!("{}  template '{}'  {size}", node.location.as_deref().unwrap_or("?"), node.name);
        }
        NodeKind::Device => match &node.path {
            Some(path) => return format!("{}  {size}", path.display()),
            None => format!("{}  {size}", node.name),
        },
        NodeKind::VolumeGroup => return format!("{}  volume group  {size}, {bytes} free", node.name),
        NodeKind::Pool => return format!("{}  thin pool  {size}", node.name),
        NodeKind::Records => return format!("{}  records  {size}", node.name),
        NodeKind::Volume => return format!("{}  volume  {size}", node.name),
        NodeKind::ForeignVolume => return format!("{}  volume, not of this SR  {size}", node.name),
        NodeKind::Nbd => return format!("/dev/{}  NBD device", node.name),
        NodeKind::Origin => "origin, padded with zeros".to_owned(),
        NodeKind::Disk if node.bytes.is_some() => format!("{}  disk  {size}, {bytes} of its own", node.name),
        NodeKind::Disk => format!("{}  disk  {size}", node.name),
        NodeKind::User => return node.name.clone(),
    };
    path(&mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(kind: NodeKind, name: &str, children: Vec<Node>) -> Node {
        Node {
            kind,
            name: name.into(),
            uuid: None,
            path: None,
            size: Some(1 << 30),
            bytes: None,
            location: Some("http://h/t.qcow2".into()),
            children,
        }
    }

    #[test]
    fn a_tree_in_lines() {
        let template = Uuid::from_u128(7);
        let disk = || node(NodeKind::Disk, "web", Vec::new());
        let nbd = node(NodeKind::Nbd, "nbd0", vec![disk()]);
        let image = Node { uuid: Some(template), ..node(NodeKind::Template, "t", vec![nbd]) };
        let pool = node(NodeKind::Pool, "vg/pool", vec![disk(), disk()]);
        let progress = Progress { data: 4, local: 1, rate: None, seconds_left: None };
        let mut lines = Vec::new();
        branch(&[&pool, &image], "", &BTreeMap::from([(template, progress)]), &mut lines);
        let wanted = [
            "├─ vg/pool  thin pool  1 GiB",
            "│  ├─ web  disk  1 GiB",
            "│  └─ web  disk  1 GiB",
            "└─ http://h/t.qcow2  template 't'  1 GiB",
            "   └─ cache  25 % local",
            "      └─ /dev/nbd0  NBD device",
            "         └─ web  disk  1 GiB",
        ];
        assert_eq!(lines, wanted);
    }
}
