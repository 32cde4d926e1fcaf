//! Every name that this crate gives to something outside itself, in one place.
//!
//! A name is a function of UUIDs alone, so whoever knows the record knows the device, and a second device for the
//! same thin id cannot come to be: the kernel refuses a duplicate name or UUID.
//!
//! Lengths. A UUID without hyphens has 32 characters. The longest device-mapper name is
//! `smctl-<32>-<32>-flatten`, 6 + 32 + 1 + 32 + 8 = 79 of at most 127 characters (`DM_NAME_LEN`), and its UUID is as
//! long, of at most 128 (`DM_UUID_LEN`). The longest logical volume is `smctl-<36>-thick-<36>`, 85 characters; in
//! the device-mapper name that LVM makes of it hyphens are doubled (+11), and the volume group goes before it, so a
//! group's name with its hyphens doubled may have at most [`VG_NAME_MAX`] characters.

use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Longest volume group name, hyphens counted twice, that leaves room for our longest logical volume in a
/// device-mapper name of 127 characters.
pub const VG_NAME_MAX: usize = 127 - 1 - 85 - 11;

/// The tag on every volume group and logical volume that belongs to an SR.
pub const TAG: &str = "smctl";

/// Device-mapper UUIDs of ours start with this.
pub const UUID_PREFIX: &str = "SMCTL-";

/// A device-mapper device: its name and its UUID.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DmName {
    /// The name, as in `/dev/mapper`.
    pub name: String,
    /// The UUID, which udev rules and `dmsetup info` show.
    pub uuid: String,
}

/// The device of a VDI.
pub fn vdi_device(sr: Uuid, vdi: Uuid) -> DmName {
    device(sr, vdi, "")
}

/// The padded device of a template, which is the external origin of every VDI that descends from it.
pub fn origin_device(sr: Uuid, template: Uuid) -> DmName {
    device(sr, template, "-origin")
}

/// The second device of a thin VDI, through which blocks of its template are written into it while it is flattened. It
/// has no origin.
pub fn flatten_device(sr: Uuid, vdi: Uuid) -> DmName {
    device(sr, vdi, "-flatten")
}

/// The third device of a thin VDI, through which it is seen which blocks are mapped.
pub fn probe_device(sr: Uuid, vdi: Uuid) -> DmName {
    device(sr, vdi, "-probe")
}

/// The device that gives an error wherever it is read: the origin of [`probe_device`].
pub fn nothing_device(sr: Uuid, vdi: Uuid) -> DmName {
    device(sr, vdi, "-nothing")
}

/// Every device that is there only while a VDI is flattened; what stands on another comes before it.
pub fn scratch_devices(sr: Uuid, vdi: Uuid) -> [DmName; 3] {
    [flatten_device(sr, vdi), probe_device(sr, vdi), nothing_device(sr, vdi)]
}

fn device(sr: Uuid, vdi: Uuid, role: &str) -> DmName {
    let (sr, vdi) = (sr.simple(), vdi.simple());
    DmName { name: format!("smctl-{sr}-{vdi}{role}"), uuid: format!("{UUID_PREFIX}{sr}-{vdi}{role}") }
}

/// What a device-mapper device of ours is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The device of a VDI.
    Vdi(Uuid),
    /// The padded device of a template.
    Origin(Uuid),
    /// A device that is there only while the VDI is flattened.
    Scratch(Uuid),
}

/// What the device called `name` is for, if it is one of `sr`'s.
pub fn role(sr: Uuid, name: &str) -> Option<Role> {
    let rest = name.strip_prefix("smctl-")?.strip_prefix(&sr.simple().to_string())?.strip_prefix('-')?;
    match rest.split_once('-') {
        Some((uuid, "origin")) => Some(Role::Origin(parse_simple(uuid)?)),
        Some((uuid, "flatten" | "probe" | "nothing")) => Some(Role::Scratch(parse_simple(uuid)?)),
        Some(_) => None,
        None => Some(Role::Vdi(parse_simple(rest)?)),
    }
}

/// The SR that the device called `name` belongs to, and what it is for there, if it is one of ours.
pub fn owner(name: &str) -> Option<(Uuid, Role)> {
    let sr = parse_simple(name.strip_prefix("smctl-")?.split('-').next()?)?;
    Some((sr, role(sr, name)?))
}

fn parse_simple(text: &str) -> Option<Uuid> {
    Uuid::try_parse(text).ok().filter(|_| text.len() == 32)
}

/// The logical volume that is the thin pool.
pub fn pool_lv(sr: Uuid) -> String {
    format!("smctl-{sr}-pool")
}

/// The logical volume that holds the records.
pub fn meta_lv(sr: Uuid) -> String {
    format!("smctl-{sr}-meta")
}

/// The logical volume of a preallocated VDI.
pub fn thick_lv(sr: Uuid, vdi: Uuid) -> String {
    format!("smctl-{sr}-thick-{vdi}")
}

/// The VDI whose preallocated volume in this group has the device called `name`, if it is one of `sr`'s.
pub fn vdi_of_thick_device(vg: &str, sr: Uuid, name: &str) -> Option<Uuid> {
    let uuid = name.strip_prefix(&lv_device(vg, &format!("smctl-{sr}-thick-")))?.replace("--", "-");
    Uuid::try_parse(&uuid).ok().filter(|_| uuid.len() == 36)
}

/// The VDI that the logical volume `lv` was preallocated for in the SR, if its name says so.
pub fn vdi_of_thick_lv(sr: Uuid, lv: &str) -> Option<Uuid> {
    let uuid = lv.strip_prefix(&format!("smctl-{sr}-thick-"))?;
    Uuid::try_parse(uuid).ok().filter(|_| uuid.len() == 36)
}

/// The logical volume of a template's local copy.
pub fn local_lv(sr: Uuid, template: Uuid) -> String {
    format!("smctl-{sr}-local-{template}")
}

/// The SR whose records the logical volume `lv` holds, if its name says that it holds any.
pub fn sr_of_meta_lv(lv: &str) -> Option<Uuid> {
    let uuid = lv.strip_prefix("smctl-")?.strip_suffix("-meta")?;
    Uuid::try_parse(uuid).ok().filter(|_| uuid.len() == 36)
}

/// The SR that the logical volume `lv` was made for, if its name says so.
pub fn sr_of_lv(lv: &str) -> Option<Uuid> {
    let (uuid, rest) = lv.strip_prefix("smctl-")?.split_at_checked(36)?;
    Uuid::try_parse(uuid).ok().filter(|_| rest.starts_with('-'))
}

/// The name that LVM gives the device of a logical volume: hyphens doubled, one hyphen between.
pub fn lv_device(vg: &str, lv: &str) -> String {
    format!("{}-{}", vg.replace('-', "--"), lv.replace('-', "--"))
}

/// The volume group and the logical volume whose device has a name made by [`lv_device`].
pub fn lv_of_device(name: &str) -> Option<(String, String)> {
    let bytes = name.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] != b'-' {
            at += 1;
        } else if bytes.get(at + 1) == Some(&b'-') {
            at += 2;
        } else {
            return Some((name[..at].replace("--", "-"), name[at + 1..].replace("--", "-")));
        }
    }
    None
}

/// The tag that says which SR a volume group was made for.
pub fn sr_tag(sr: Uuid) -> String {
    format!("smctl.sr={sr}")
}

/// The SR that a tag made by [`sr_tag`] names.
pub fn sr_of_tag(tag: &str) -> Option<Uuid> {
    Uuid::try_parse(tag.strip_prefix("smctl.sr=")?).ok()
}

/// The tag that says which volume is an SR's pool. Names of volumes have no letters that a tag may not have.
pub fn pool_tag(lv: &str) -> String {
    format!("smctl.pool={lv}")
}

/// The volume that a tag made by [`pool_tag`] names.
pub fn pool_of_tag(tag: &str) -> Option<&str> {
    tag.strip_prefix("smctl.pool=")
}

/// The tag that shows an SR's name without its records being read.
///
/// LVM allows letters, digits and `_+.-/=!:&#` in a tag, so every other byte is written as `&` and two hex digits.
pub fn name_tag(name: &str) -> String {
    let mut tag = String::from("smctl.name=");
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"_+.-".contains(&byte) {
            tag.push(char::from(byte));
        } else {
            tag.push_str(&format!("&{byte:02x}"));
        }
    }
    tag
}

/// The name in a tag made by [`name_tag`].
pub fn name_of_tag(tag: &str) -> Option<String> {
    let text = tag.strip_prefix("smctl.name=")?;
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'&' {
            let (hex, tail) = tail.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?);
            rest = tail;
        } else {
            bytes.push(byte);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

/// The link to a VDI's device under `dev` (`/dev/thinorigin`).
pub fn link(dev: &Path, sr: Uuid, vdi: Uuid) -> PathBuf {
    dev.join(sr.to_string()).join(vdi.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_are_read_back() {
        let (sr, vdi) = (Uuid::new_v4(), Uuid::new_v4());
        for (name, want) in
            [(vdi_device(sr, vdi), Role::Vdi(vdi)), (origin_device(sr, vdi), Role::Origin(vdi))]
                .into_iter()
                .chain(scratch_devices(sr, vdi).map(|name| (name, Role::Scratch(vdi))))
        {
            assert!(name.name.len() < 128 && name.uuid.len() < 129);
            assert_eq!(role(sr, &name.name), Some(want));
            assert_eq!(role(vdi, &name.name), None);
            assert_eq!(owner(&name.name), Some((sr, want)));
        }
        let vg = "v".repeat(VG_NAME_MAX);
        assert_eq!(lv_device(&vg, &thick_lv(sr, vdi)).len(), 127);
        assert_eq!(lv_device(&vg, &local_lv(sr, vdi)).len(), 127);
        for group in ["vg", "my-group"] {
            let name = lv_device(group, &thick_lv(sr, vdi));
            assert_eq!(vdi_of_thick_device(group, sr, &name), Some(vdi));
            assert_eq!(vdi_of_thick_device(group, vdi, &name), None);
            assert_eq!(vdi_of_thick_device("other", sr, &name), None);
        }
        assert_eq!(vdi_of_thick_lv(sr, &thick_lv(sr, vdi)), Some(vdi));
        assert_eq!(vdi_of_thick_lv(vdi, &thick_lv(sr, vdi)), None);
        for (vg, lv) in [("a", "b"), ("a-b", "c--d"), ("fast", &thick_lv(sr, vdi))] {
            assert_eq!(lv_of_device(&lv_device(vg, lv)), Some((vg.into(), lv.into())));
        }
        assert_eq!(lv_of_device("a--b"), None);
        assert_eq!([sr_of_lv(&pool_lv(sr)), sr_of_lv("smctl-"), sr_of_lv("root")], [Some(sr), None, None]);
        assert_eq!(sr_of_meta_lv(&meta_lv(sr)), Some(sr));
        assert_eq!(sr_of_meta_lv(&pool_lv(sr)), None);
        assert_eq!(sr_of_tag(&sr_tag(sr)), Some(sr));
        assert_eq!(role(sr, "smctl-"), None);
    }

    #[test]
    fn any_name_survives_a_tag() {
        for name in ["fast", "a b", "&", "größe/1", "", "100%"] {
            let tag = name_tag(name);
            assert!(tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+.-=&".contains(&b)));
            assert_eq!(name_of_tag(&tag).as_deref(), Some(name));
        }
        assert_eq!(name_of_tag("smctl.name=&zz"), None);
        assert_eq!(name_of_tag("smctl.name=&4"), None);
    }
}
