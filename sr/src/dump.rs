//! The records of an SR as text: to be kept elsewhere, read by people, and restored from.
//!
//! A dump is one JSON document. It holds what the records hold, so that thin devices in a pool become VDIs again when
//! the volume with the records is lost. It holds no data of VDIs, and no secrets: where a template's location has one,
//! whoever writes the dump leaves it out, and it has to be given again when the dump is restored.

use crate::error::{Error, Result};
use crate::record::{SrRecord, THIN_ID_MAX, Vdi};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// The version of the dumps that this version writes and the highest that it reads.
const VERSION: u32 = 1;

/// The records of an SR.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dump {
    /// What the document is, and the version of its form.
    thinorigin_sr_dump: u32,
    /// The SR's record.
    pub sr: SrRecord,
    /// The pool's transaction id that the records belong to.
    pub transaction_id: u64,
    /// The next device id.
    pub next_thin_id: u32,
    /// Templates whose location is not complete here, because what is missing is a secret.
    #[serde(default)]
    withheld: BTreeSet<Uuid>,
    /// Every VDI, templates included.
    pub vdis: Vec<Vdi>,
}

impl Dump {
    pub(crate) fn new(sr: SrRecord, transaction_id: u64, next_thin_id: u32, vdis: Vec<Vdi>) -> Self {
        let withheld = BTreeSet::new();
        Self { thinorigin_sr_dump: VERSION, sr, transaction_id, next_thin_id, withheld, vdis }
    }

    /// The dump as text.
    pub fn to_text(&self) -> String {
        #[expect(
            clippy::expect_used,
            reason = "records have string keys and plain values, which JSON can hold"
        )]
        let mut text = serde_json::to_string_pretty(self).expect("records become JSON");
        text.push('\n');
        text
    }

    /// The dump in a text.
    ///
    /// # Errors
    /// `Refused` for one of a later version, which is named; `Failed` for what is no dump, or one whose records do not
    /// fit together.
    pub fn parse(text: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Head {
            thinorigin_sr_dump: u32,
        }
        let head: Head = serde_json::from_slice(text)
            .map_err(|e| Error::failed("this is no dump of an SR's records").because(e))?;
        if head.thinorigin_sr_dump != VERSION {
            return Err(Error::refused(format!(
                "the dump has version {}, and this smctl knows version {VERSION}",
                head.thinorigin_sr_dump
            )));
        }
        let dump: Self =
            serde_json::from_slice(text).map_err(|e| Error::failed("the dump is damaged").because(e))?;
        dump.check()?;
        Ok(dump)
    }

    /// Whether the records fit together.
    fn check(&self) -> Result<()> {
        let mut vdis = BTreeMap::new();
        let mut ids = BTreeMap::new();
        for vdi in &self.vdis {
            if vdis.insert(vdi.uuid, vdi).is_some() {
                return Err(Error::failed(format!("the dump has VDI {} twice", vdi.uuid)));
            }
            let Some(id) = vdi.thin_id() else { continue };
            if id > THIN_ID_MAX {
                return Err(Error::failed(format!("the dump has a thin device {id}, which cannot be")));
            }
            if let Some(other) = ids.insert(id, vdi.uuid) {
                return Err(Error::failed(format!(
                    "the dump has thin device {id} for VDI {other} and for VDI {}",
                    vdi.uuid
                )));
            }
        }
        for vdi in &self.vdis {
            if let Some(origin) = vdi.origin
                && !vdis.get(&origin).is_some_and(|it| it.is_template())
            {
                return Err(Error::failed(format!(
                    "the dump has VDI {} without its template {origin}",
                    vdi.uuid
                )));
            }
        }
        Ok(())
    }

    /// The templates, with their locations as recorded.
    pub fn templates(&self) -> impl Iterator<Item = (Uuid, &str)> {
        self.vdis.iter().filter_map(|vdi| Some((vdi.uuid, vdi.location()?)))
    }

    /// Leaves a secret out: the template's location becomes `shown`.
    pub fn withhold(&mut self, template: Uuid, shown: String) {
        if self.place(template, shown) {
            self.withheld.insert(template);
        }
    }

    /// Gives a template a location, which completes it.
    ///
    /// # Errors
    /// `NotFound` if the dump has no such template.
    pub fn locate(&mut self, template: Uuid, location: String) -> Result<()> {
        if !self.place(template, location) {
            return Err(Error::not_found(format!("the dump has no template {template}")));
        }
        self.withheld.remove(&template);
        Ok(())
    }

    fn place(&mut self, template: Uuid, location: String) -> bool {
        let mut vdis = self.vdis.iter_mut();
        match vdis.find(|vdi| vdi.uuid == template).and_then(Vdi::location_mut) {
            Some(place) => {
                *place = location;
                true
            }
            None => false,
        }
    }

    /// The templates whose locations are not complete.
    pub fn withheld(&self) -> &BTreeSet<Uuid> {
        &self.withheld
    }

    /// The device ids of the VDIs.
    pub(crate) fn thin_ids(&self) -> BTreeMap<u32, &Vdi> {
        self.vdis.iter().filter_map(|vdi| Some((vdi.thin_id()?, vdi))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Body;

    fn dump() -> Dump {
        let vdi = |body, origin, read_only| Vdi {
            uuid: Uuid::new_v4(),
            name: "a \"name\"".into(),
            body,
            virtual_size: 4096,
            origin,
            parent: origin,
            snapshot_of: None,
            read_only,
        };
        let image = Body::Template {
            location: "http://h/i?key=1".into(),
            identity: "i".into(),
            format: "raw".into(),
            patience: None,
            local: None,
        };
        let template = vdi(image, None, true);
        let disk = vdi(Body::Thin { id: 4 }, Some(template.uuid), false);
        Dump::new(SrRecord::specimen(), 7, 5, vec![template, disk])
    }

    #[test]
    fn a_dump_is_read_back_and_secrets_stay_out() {
        let mut dump = dump();
        assert_eq!(Dump::parse(dump.to_text().as_bytes()).unwrap(), dump);
        let whole = dump.clone();
        let template = dump.vdis[0].uuid;
        dump.withhold(template, "http://h/i?…".into());
        assert!(!dump.to_text().contains("key=1"));
        let mut read = Dump::parse(dump.to_text().as_bytes()).unwrap();
        assert_eq!(read.withheld().iter().collect::<Vec<_>>(), [&template]);
        read.locate(template, "http://h/i?key=1".into()).unwrap();
        assert_eq!(read, whole);
        assert!(read.locate(read.vdis[1].uuid, "x".into()).is_err(), "a disk has no location");
    }

    #[test]
    fn what_does_not_fit_together_is_told() {
        let told = |change: &dyn Fn(&mut Dump)| {
            let mut dump = dump();
            change(&mut dump);
            Dump::parse(dump.to_text().as_bytes()).unwrap_err().message
        };
        assert!(told(&|dump| dump.thinorigin_sr_dump = 9).contains("version 9"));
        assert!(told(&|dump| drop(dump.vdis.remove(0))).contains("without its template"));
        assert!(told(&|dump| dump.vdis[1].body = Body::Thin { id: 1 << 24 }).contains("cannot be"));
        assert!(
            told(&|dump| {
                let twin = Vdi { uuid: Uuid::new_v4(), ..dump.vdis[1].clone() };
                dump.vdis.push(twin);
            })
            .contains("thin device 4 for VDI")
        );
        assert!(told(&|dump| dump.vdis.push(dump.vdis[1].clone())).contains("twice"));
        assert!(Dump::parse(b"{}").unwrap_err().message.contains("no dump"));
        assert!(Dump::parse(b"\xff\x00").is_err());
        assert!(Dump::parse(br#"{"thinorigin_sr_dump":1,"sr":{}}"#).unwrap_err().message.contains("damaged"));
    }
}
