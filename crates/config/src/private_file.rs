//! Files that hold secrets: read with a limit, written whole or not at all, for the owner's eyes only.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// Reads a whole file of at most `limit` bytes; a longer one is an error of the kind [`io::ErrorKind::FileTooLarge`].
/// Blocks.
pub fn read(path: &Path, limit: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    let file = File::open(path)?;
    let size = file.metadata()?.len().min(limit);
    // With the right capacity the buffer does not move, which would leave a copy of the secret behind.
    let capacity = usize::try_from(size).unwrap_or(0) + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(capacity));
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > limit {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("larger than {limit} bytes"),
        ));
    }
    Ok(bytes)
}

/// Replaces the file by one with these bytes and mode 0600. When it returns, the new content is on disk; when it fails,
/// or the machine stops on the way, the former content stands. Blocks.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let temporary = temporary_name(path)?;
    let written = write_new(&temporary, bytes).and_then(|()| std::fs::rename(&temporary, path));
    if let Err(error) = written {
        // The first error is the one to tell; a left-over is replaced by the next attempt.
        std::fs::remove_file(&temporary).ok();
        return Err(error);
    }
    File::open(directory)?.sync_all()
}

/// Beside the file, so that the rename stays within one file system.
fn temporary_name(path: &Path) -> io::Result<PathBuf> {
    let Some(name) = path.file_name() else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the path names no file",
        ));
    };
    let mut name = name.to_owned();
    name.push(".tmp");
    Ok(path.with_file_name(name))
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // A left-over of an earlier attempt may have another mode or owner: never write into it.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn replaces_the_whole_file_and_keeps_it_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.json");
        std::fs::write(&path, "a much longer former content").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        replace(&path, b"new").unwrap();
        assert_eq!(read(&path, 3).unwrap().as_slice(), b"new");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(directory.path().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn a_left_over_of_an_earlier_attempt_is_not_written_into() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.json");
        let elsewhere = directory.path().join("elsewhere");
        std::fs::write(&elsewhere, "untouched").unwrap();
        std::os::unix::fs::symlink(&elsewhere, directory.path().join("keys.json.tmp")).unwrap();
        replace(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&elsewhere).unwrap(), b"untouched");
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn a_failure_leaves_the_former_content_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        // A directory stands where the file should go: the rename fails after the write.
        let path = directory.path().join("keys.json");
        std::fs::create_dir(&path).unwrap();
        replace(&path, b"new").unwrap_err();
        assert_eq!(directory.path().read_dir().unwrap().count(), 1);
        replace(&directory.path().join("missing/keys.json"), b"new").unwrap_err();
        replace(Path::new("/"), b"new").unwrap_err();
    }

    #[test]
    fn a_file_beyond_the_limit_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("big");
        std::fs::write(&path, "1234").unwrap();
        assert_eq!(
            read(&path, 3).unwrap_err().kind(),
            io::ErrorKind::FileTooLarge
        );
    }
}
