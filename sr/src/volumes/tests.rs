//! The list, from the tables of a host that has something of everything.

use super::*;
use crate::lvm::Pv;
use std::path::Path;

fn block(name: &str, minor: u32, slaves: &[&str]) -> BlockDevice {
    BlockDevice {
        name: name.into(),
        path: Path::new("/dev").join(name),
        number: Some(crate::dm::DeviceNumber { major: 8, minor }),
        size: 1 << 30,
        slaves: slaves.iter().map(|slave| (*slave).into()).collect(),
        ..BlockDevice::default()
    }
}

fn mapped(name: &str, minor: u32, slaves: &[&str], dm: &str, uuid: &str) -> BlockDevice {
    BlockDevice { dm_name: Some(dm.into()), dm_uuid: Some(uuid.into()), ..block(name, minor, slaves) }
}

fn lv(name: &str, kind: &str) -> Lv {
    Lv {
        name: name.into(),
        size: 1 << 29,
        kind: kind.into(),
        tags: Vec::new(),
        active: true,
        pool: None,
        transaction_id: 0,
        chunk: 0,
        metadata: 0,
    }
}

fn host() -> Vec<HostVolume> {
    let (sr, vdi, template) = (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3));
    let device = names::vdi_device(sr, vdi);
    let origin = names::origin_device(sr, template);
    let survey = Survey {
        blocks: vec![
            mapped("dm-0", 20, &["sda1"], "vg-pool_tdata", "LVM-a-tdata"),
            mapped("dm-1", 21, &["sda1"], "vg-pool_tmeta", "LVM-a-tmeta"),
            mapped("dm-2", 22, &["dm-0", "dm-1"], "vg-pool", "LVM-a"),
            mapped("dm-3", 23, &["nbd0"], &origin.name, &origin.uuid),
            mapped("dm-4", 24, &["dm-2", "dm-3"], &device.name, &device.uuid),
            mapped("dm-5", 25, &["sdb"], "other-root", "LVM-b"),
            mapped("dm-6", 26, &["sdb"], "secret", "CRYPT-c"),
            BlockDevice { network: true, read_only: true, ..block("nbd0", 30, &[]) },
            block("sda", 0, &[]),
            BlockDevice { partition_of: Some("sda".into()), ..block("sda1", 1, &[]) },
            BlockDevice { network: true, ..block("sdb", 16, &[]) },
        ],
        mounts: vec![
            Mount {
                source: "server:/export".into(),
                kind: "nfs4".into(),
                number: crate::dm::DeviceNumber { major: 0, minor: 44 },
                places: vec!["/nfs".into()],
            },
            Mount {
                source: "/dev/mapper/secret".into(),
                kind: "ext4".into(),
                number: crate::dm::DeviceNumber { major: 8, minor: 26 },
                places: vec!["/home".into(), "/srv".into()],
            },
        ],
    };
    let group = Vg {
        name: "vg".into(),
        size: 1 << 30,
        free: 1 << 28,
        extent: 4 << 20,
        shared: false,
        tags: vec![names::sr_tag(sr)],
        pvs: vec![Pv { path: "/dev/sda1".into(), size: 1 << 30 }],
        lvs: vec![lv("pool", "thin-pool"), lv("idle", "linear")],
    };
    list(&survey, &Found { groups: vec![group], free: Vec::new() })
}

#[test]
fn what_stands_on_what() {
    let volumes = host();
    let on: BTreeMap<_, _> = volumes.iter().map(|volume| (volume.id.as_str(), volume.on.join(" "))).collect();
    // The parts of the thin pool are LVM's own affair. A group that LVM may not look at, as one of a guest, still
    // shows its devices.
    let expected = [
        ("/home", "dm-6"),
        ("dm-3", "nbd0"),
        ("dm-4", "dm-3 vg/pool"),
        ("dm-5", "sdb"),
        ("dm-6", "sdb"),
        ("nbd0", ""),
        ("sda", ""),
        ("sda1", "sda"),
        ("sdb", ""),
        ("server:/export", ""),
        ("vg", "sda1"),
        ("vg/idle", "vg"),
        ("vg/pool", "vg"),
    ];
    assert_eq!(on, expected.map(|(id, on)| (id, on.to_owned())).into());
    let mut seen = BTreeSet::new();
    for volume in &volumes {
        assert!(volume.on.iter().all(|on| seen.contains(on.as_str())), "{} comes too early", volume.id);
        seen.insert(volume.id.as_str());
        for held in &volume.holds {
            let held = volumes.iter().find(|other| other.id == *held).unwrap();
            assert!(held.on.contains(&volume.id));
        }
    }
}

#[test]
fn what_is_a_pool_and_where_its_data_is() {
    let volumes = host();
    let words = |id: &str| {
        let volume = volumes.iter().find(|volume| volume.id == id).unwrap();
        (volume.kind, volume.location, volume.access, volume.pool, volume.volume)
    };
    use VolumeKind::*;
    assert_eq!(words("sda"), (Disk, "local", "private", true, true));
    assert_eq!(words("sda1"), (Partition, "local", "private", false, true));
    assert_eq!(words("sdb"), (Disk, "network", "shared", false, true));
    assert_eq!(words("vg"), (VolumeGroup, "local", "private", true, false));
    assert_eq!(words("vg/pool"), (ThinPool, "local", "private", true, false));
    assert_eq!(words("nbd0"), (Nbd, "network", "shared", false, true));
    assert_eq!(words("dm-3"), (Origin, "network", "private", false, false));
    assert_eq!(words("dm-4"), (Vdi, "local", "private", false, true), "its own data is in the pool");
    assert_eq!(
        words("/home"),
        (FileSystem, "network", "private", true, false),
        "on a disk of another machine"
    );
    assert_eq!(words("server:/export"), (FileSystem, "network", "shared", true, false));
    let vdi = volumes.iter().find(|volume| volume.id == "dm-4").unwrap();
    assert_eq!((vdi.sr, vdi.vdi), (Some(Uuid::from_u128(1)), Some(Uuid::from_u128(2))));
}

#[test]
fn a_loop_in_the_tables_ends() {
    let survey =
        Survey { blocks: vec![block("dm-0", 0, &["dm-1"]), block("dm-1", 1, &["dm-0"])], mounts: Vec::new() };
    assert_eq!(list(&survey, &Found::default()).len(), 2);
    assert!(survey.is_guests(&survey.blocks[0]), "who cannot be told from a guest's is taken for one");
}
