//! Unified kernel images: systemd's stub with kernel, initrd, command line and os-release added as
//! PE sections (UAPI group specification "Unified Kernel Image"; Microsoft PE format for offsets).

use anyhow::{Context, Result, bail, ensure};

pub struct Parts<'a> {
    pub stub: &'a [u8],
    pub os_release: &'a str,
    pub cmdline: &'a str,
    pub uname: &'a str,
    pub initrd: &'a [u8],
    pub kernel: &'a [u8],
}

const READ: u32 = 0x4000_0000;
const EXECUTE: u32 = 0x2000_0000;
const DATA: u32 = 0x0000_0040;
const CODE: u32 = 0x0000_0020;
const SECTION_HEADER: usize = 40;

pub fn build(parts: &Parts<'_>) -> Result<Vec<u8>> {
    let mut pe = Pe::parse(parts.stub.to_vec()).context("the systemd stub")?;
    pe.add(".osrel", parts.os_release.as_bytes(), None, READ | DATA)?;
    pe.add(".cmdline", parts.cmdline.as_bytes(), None, READ | DATA)?;
    pe.add(".uname", parts.uname.as_bytes(), None, READ | DATA)?;
    pe.add(".initrd", parts.initrd, None, READ | DATA)?;
    // The stub may run the kernel in place, which needs the memory that the kernel's own header
    // asks for. Last, because it is the only section whose memory is larger than its data.
    let kernel_memory = Pe::parse(parts.kernel.to_vec())
        .context("the kernel")?
        .size_of_image();
    pe.add(
        ".linux",
        parts.kernel,
        Some(kernel_memory),
        READ | EXECUTE | CODE,
    )?;
    Ok(pe.bytes)
}

/// The contents of a section, up to its data's length; used to look into a UKI.
pub fn section<'a>(uki: &'a [u8], name: &str) -> Result<Option<&'a [u8]>> {
    let pe = Pe::parse(uki.to_vec())?;
    for i in 0..pe.section_count() {
        let at = pe.section_table() + i * SECTION_HEADER;
        if uki[at..at + 8].split(|b| *b == 0).next() == Some(name.as_bytes()) {
            let (size, raw) = (pe.u32(at + 8), pe.u32(at + 20));
            let raw_size = pe.u32(at + 16);
            let end = raw as usize + size.min(raw_size) as usize;
            return Ok(Some(
                uki.get(raw as usize..end)
                    .context("section lies outside the file")?,
            ));
        }
    }
    Ok(None)
}

struct Pe {
    bytes: Vec<u8>,
    /// Offset of the COFF header, behind the `PE\0\0` signature.
    coff: usize,
}

impl Pe {
    fn parse(bytes: Vec<u8>) -> Result<Self> {
        ensure!(
            bytes.len() > 0x40 && bytes.starts_with(b"MZ"),
            "not a PE file"
        );
        let at = u32::from_le_bytes(bytes[0x3c..0x40].try_into()?) as usize;
        ensure!(bytes.get(at..at + 4) == Some(b"PE\0\0"), "no PE signature");
        let pe = Self {
            bytes,
            coff: at + 4,
        };
        ensure!(pe.bytes.len() >= pe.section_table(), "truncated PE header");
        ensure!(pe.u16(pe.optional()) == 0x20b, "not a 64-bit (PE32+) image");
        Ok(pe)
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }
    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes([
            self.bytes[at],
            self.bytes[at + 1],
            self.bytes[at + 2],
            self.bytes[at + 3],
        ])
    }
    fn put(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    fn section_count(&self) -> usize {
        self.u16(self.coff + 2).into()
    }
    fn optional(&self) -> usize {
        self.coff + 20
    }
    fn section_table(&self) -> usize {
        self.optional() + usize::from(self.u16(self.coff + 16))
    }
    fn size_of_image(&self) -> u32 {
        self.u32(self.optional() + 56)
    }

    fn add(&mut self, name: &str, data: &[u8], memory: Option<u32>, flags: u32) -> Result<()> {
        let optional = self.optional();
        let (section_align, file_align) = (self.u32(optional + 32), self.u32(optional + 36));
        let at = self.section_table() + self.section_count() * SECTION_HEADER;
        if at + SECTION_HEADER > self.u32(optional + 60) as usize {
            bail!("the stub's header has no room for another section");
        }
        let length = u32::try_from(data.len())?;
        let virtual_size = memory.unwrap_or(length).max(length);
        let address = align(self.size_of_image(), section_align);
        let raw = align(u32::try_from(self.bytes.len())?, file_align);
        let raw_size = align(length, file_align);
        self.bytes.resize(raw as usize, 0);
        self.bytes.extend_from_slice(data);
        self.bytes.resize((raw + raw_size) as usize, 0);

        let mut header = [0; SECTION_HEADER];
        header[..name.len()].copy_from_slice(name.as_bytes());
        self.bytes[at..at + SECTION_HEADER].copy_from_slice(&header);
        self.put(at + 8, virtual_size);
        self.put(at + 12, address);
        self.put(at + 16, raw_size);
        self.put(at + 20, raw);
        self.put(at + 36, flags);

        let count = u16::try_from(self.section_count() + 1)?;
        self.bytes[self.coff + 2..self.coff + 4].copy_from_slice(&count.to_le_bytes());
        self.put(optional + 56, align(address + virtual_size, section_align));
        let initialized = self.u32(optional + 8) + raw_size;
        self.put(optional + 8, initialized);
        Ok(())
    }
}

fn align(value: u32, to: u32) -> u32 {
    value.div_ceil(to) * to
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header-only PE32+ with room for sections, as small as the format allows.
    fn minimal_pe() -> Vec<u8> {
        let mut b = vec![0; 0x400];
        b[..2].copy_from_slice(b"MZ");
        b[0x3c] = 0x40;
        b[0x40..0x44].copy_from_slice(b"PE\0\0");
        b[0x44 + 16] = 112;
        let optional = 0x44 + 20;
        b[optional..optional + 2].copy_from_slice(&0x20bu16.to_le_bytes());
        for (at, value) in [(32, 0x1000u32), (36, 0x200), (56, 0x1000), (60, 0x400)] {
            b[optional + at..optional + at + 4].copy_from_slice(&value.to_le_bytes());
        }
        b
    }

    #[test]
    fn sections_can_be_read_back_and_do_not_overlap() {
        let pe = minimal_pe();
        let parts = Parts {
            stub: &pe,
            os_release: "ID=orlop\n",
            cmdline: "quiet",
            uname: "6.12",
            initrd: &[7; 5000],
            kernel: &pe,
        };
        let uki = build(&parts).unwrap();
        assert_eq!(section(&uki, ".cmdline").unwrap().unwrap(), b"quiet");
        assert_eq!(section(&uki, ".initrd").unwrap().unwrap(), &[7; 5000]);
        assert_eq!(section(&uki, ".linux").unwrap().unwrap(), pe);
        assert_eq!(section(&uki, ".dtb").unwrap(), None);
        let pe = Pe::parse(uki).unwrap();
        let mut end = 0;
        for i in 0..pe.section_count() {
            let at = pe.section_table() + i * SECTION_HEADER;
            assert!(pe.u32(at + 12) >= end);
            end = pe.u32(at + 12) + pe.u32(at + 8);
        }
        assert!(pe.size_of_image() >= end);
    }

    #[test]
    fn something_else_is_refused() {
        assert!(Pe::parse(b"ELF".to_vec()).is_err());
        assert!(Pe::parse(vec![0; 4096]).is_err());
    }

    #[test]
    fn a_full_header_is_an_error_not_a_broken_image() {
        let mut pe = Pe::parse(minimal_pe()).unwrap();
        let result = (0..100).try_for_each(|_| pe.add(".x", b"1", None, READ));
        assert!(result.unwrap_err().to_string().contains("no room"));
    }
}
