//! Tables as values.

use super::{DeviceNumber, SECTOR};
use std::fmt;

/// The target of one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Part of another device.
    Linear {
        /// The device.
        device: DeviceNumber,
        /// First sector of the part.
        offset: u64,
    },
    /// Reads as zeros; writes are dropped.
    Zero,
    /// A thin device.
    Thin {
        /// The pool's device.
        pool: DeviceNumber,
        /// The device id in the pool.
        id: u32,
        /// What shows through where nothing is mapped.
        origin: Option<DeviceNumber>,
    },
    /// Any other target, as the kernel words it.
    Other {
        /// The target's name, as `thin-pool`.
        kind: String,
        /// Its parameters.
        parameters: String,
    },
}

impl Target {
    /// The target that the kernel reports as `kind` with `parameters`.
    pub(crate) fn parse(kind: &str, parameters: &str) -> Self {
        Self::parse_known(kind, parameters)
            .unwrap_or_else(|| Self::Other { kind: kind.into(), parameters: parameters.into() })
    }

    fn parse_known(kind: &str, parameters: &str) -> Option<Self> {
        let mut words = parameters.split_ascii_whitespace();
        let target = match kind {
            "linear" => {
                Self::Linear { device: words.next()?.parse().ok()?, offset: words.next()?.parse().ok()? }
            }
            "zero" => Self::Zero,
            "thin" => Self::Thin {
                pool: words.next()?.parse().ok()?,
                id: words.next()?.parse().ok()?,
                origin: match words.next() {
                    Some(word) => Some(word.parse().ok()?),
                    None => None,
                },
            },
            _ => return None,
        };
        words.next().is_none().then_some(target)
    }

    /// The target's name and its parameters, as the kernel wants them.
    pub(crate) fn words(&self) -> (&str, String) {
        match self {
            Self::Linear { device, offset } => ("linear", format!("{device} {offset}")),
            Self::Zero => ("zero", String::new()),
            Self::Thin { pool, id, origin } => match origin {
                Some(origin) => ("thin", format!("{pool} {id} {origin}")),
                None => ("thin", format!("{pool} {id}")),
            },
            Self::Other { kind, parameters } => (kind, parameters.clone()),
        }
    }
}

/// A run of sectors and what is behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Sectors in the run.
    pub sectors: u64,
    /// What is behind it.
    pub target: Target,
}

/// A device's table: segments one after another, from sector 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table(pub Vec<Segment>);

impl Table {
    /// A table of one segment of `bytes`, which are whole sectors.
    pub fn single(bytes: u64, target: Target) -> Self {
        Self(vec![Segment { sectors: bytes / SECTOR, target }])
    }

    /// The device's length, in bytes.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|segment| segment.sectors * SECTOR).sum()
    }

    /// The target, if the table has one segment.
    pub fn only(&self) -> Option<&Target> {
        match self.0.as_slice() {
            [segment] => Some(&segment.target),
            _ => None,
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut start = 0;
        for segment in &self.0 {
            let (kind, parameters) = segment.target.words();
            let comma = if start == 0 { "" } else { ", " };
            write!(f, "{comma}{start} {} {kind} {parameters}", segment.sectors)?;
            start += segment.sectors;
        }
        Ok(())
    }
}
