//! Raw images: the file is the disk, byte for byte and to the last byte.

use crate::known::View;
use crate::probe::IMAGE;
use crate::{Format, FormatError, Info, Layer, Located, Mapping, Opened, Result, Run, Runs, TableRef};
use std::sync::Arc;

/// Opens any file.
pub(crate) fn open(view: View<'_>) -> Opened {
    let layer = Arc::new(Raw { size: view.len(IMAGE), info: Info { follows_file: true, ..Info::default() } });
    Opened { layer, parent: None, content_id: None }
}

#[derive(Debug)]
struct Raw {
    size: u64,
    info: Info,
}

impl Layer for Raw {
    fn format(&self) -> Format {
        Format::Raw
    }

    fn virtual_size(&self) -> u64 {
        self.size
    }

    fn info(&self) -> &Info {
        &self.info
    }

    fn locate(&self, at: u64) -> Result<Located> {
        if at >= self.size {
            return Err(FormatError::Outside { at });
        }
        let mapping = Mapping::Data { file: IMAGE, at: 0 };
        Ok(Located::Run(Run { start: 0, len: self.size, mapping }))
    }

    fn decode(&self, table: TableRef, _bytes: &[u8]) -> Result<Runs> {
        Err(FormatError::Outside { at: table.start })
    }
}
