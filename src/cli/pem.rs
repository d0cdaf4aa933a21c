//! PEM text and the files it goes to.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use config::fault::Code;

use super::error::CliError;

/// One PEM block of a DER document.
pub(crate) fn block(label: &str, der: &[u8]) -> String {
    let mut text = String::new();
    spiffe::pem::write_block(&mut text, label, der);
    text
}

pub(crate) fn certificates<'d>(ders: impl IntoIterator<Item = &'d [u8]>) -> String {
    ders.into_iter()
        .map(|der| block("CERTIFICATE", der))
        .collect()
}

/// Writes a file whole or not at all: a temporary file beside it is renamed over it. `secret`: mode 0600, else 0644.
pub(crate) fn write_file(path: &Path, text: &str, secret: bool) -> Result<(), CliError> {
    let failed = |error: &std::io::Error| {
        CliError::file(Code::FileUnwritable, "open", path.display(), error)
    };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = Path::new(&temporary);
    let mode = if secret { 0o600 } else { 0o644 };
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(temporary)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())
                .and_then(|()| file.sync_all())
        })
        .and_then(|()| std::fs::rename(temporary, path));
    if let Err(error) = written {
        drop(std::fs::remove_file(temporary));
        return Err(failed(&error));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::write_file;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_secret_is_for_its_owner_alone_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        write_file(&path, "k", true).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        write_file(&dir.path().join("no/such/dir"), "k", true).unwrap_err();
    }
}
