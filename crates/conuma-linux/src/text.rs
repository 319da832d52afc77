//! Reading the kernel's own files.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// Most that is read of one file: `numa_maps` of a process with a hundred thousand mappings.
const MOST: u64 = 64 << 20;
/// Most files of the kernel are shorter.
const USUAL: usize = 4096;

/// The text of a file; bytes that are not UTF-8 (a task's name may be any) become replacement characters.
///
/// The kernel makes these files up as they are read and knows no size before, so unlike [`std::fs::read`] this does not
/// ask for it, which is half of all system calls for a short file.
pub fn read_text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::with_capacity(USUAL);
    File::open(path)?.take(MOST).read_to_end(&mut bytes)?;
    Ok(match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel_and_of_any_length_are_read_whole() {
        assert!(read_text(Path::new("/proc/self/stat")).unwrap().contains("conuma_linux"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("long");
        let long = "word\u{e4} ".repeat(USUAL);
        std::fs::write(&path, &long).unwrap();
        assert_eq!(read_text(&path).unwrap(), long);
        std::fs::write(&path, b"a\xffb").unwrap();
        assert_eq!(read_text(&path).unwrap(), "a\u{fffd}b");
        assert_eq!(read_text(&dir.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
