//! Where log lines go: a file that can be reopened, or standard error.
//!
//! A reader that no longer reads (a stuck pipe, a stopped terminal) must not stop the daemon. A line is written before
//! the call returns, and the daemon waits for a stuck reader once; from then on lines are counted instead of written
//! until the reader reads again.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing_subscriber::fmt::MakeWriter;

/// How long a reader may keep the daemon waiting before it counts as stuck, in milliseconds.
const PATIENCE: u16 = 1000;
/// A pipe that is writable takes this much without blocking (PIPE_BUF of Linux).
const CHUNK: usize = 4096;

/// The log's destination; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Sink(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: Option<PathBuf>,
    output: Mutex<Output>,
}

#[derive(Debug)]
struct Output {
    /// Standard error when absent.
    file: Option<File>,
    flow: Flow,
}

impl Sink {
    /// Appends to the file, or writes to standard error.
    pub(super) fn open(path: Option<&Path>) -> io::Result<Self> {
        let file = path.map(append).transpose()?;
        Ok(Self(Arc::new(Inner {
            path: path.map(Path::to_owned),
            output: Mutex::new(Output {
                file,
                flow: Flow::default(),
            }),
        })))
    }

    pub(super) fn is_file(&self) -> bool {
        self.0.path.is_some()
    }

    /// Opens the file again under its name. On failure the file that is open stays in use.
    pub(super) fn reopen(&self) -> io::Result<()> {
        if let Some(path) = &self.0.path {
            let file = append(path)?;
            let mut output = self.0.output.lock().unwrap_or_else(PoisonError::into_inner);
            output.file = Some(file);
            output.flow = Flow::default();
        }
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .open(path)
}

impl Write for &Sink {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let mut output = self.0.output.lock().unwrap_or_else(PoisonError::into_inner);
        let Output { file, flow } = &mut *output;
        match file {
            Some(file) if is_regular(file) => file.write_all(buffer)?,
            Some(file) => flow.write(file.as_fd(), buffer)?,
            None => flow.write(io::stderr().as_fd(), buffer)?,
        }
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Sink {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

/// Whether writing takes only as long as the disk does; a named pipe may be given as the log file too.
fn is_regular(file: &File) -> bool {
    file.metadata()
        .is_ok_and(|meta| !meta.file_type().is_fifo() && !meta.file_type().is_char_device())
}

/// Writing to a reader who may stop reading.
#[derive(Debug, Default)]
struct Flow {
    /// The reader kept a line waiting for too long and has not read since.
    stuck: bool,
    lost: u64,
}

impl Flow {
    /// Writes one line whole, or counts it as lost.
    fn write(&mut self, output: BorrowedFd<'_>, line: &[u8]) -> io::Result<()> {
        if !self.has_room(output)? {
            self.lost += 1;
            return Ok(());
        }
        if self.lost > 0 {
            let note = format!(
                "level=warning msg=\"log lines were lost because nobody read them\" count={}\n",
                self.lost
            );
            self.put(output, note.as_bytes())?;
            self.lost = 0;
        }
        self.put(output, line)
    }

    /// What does not fit before the reader gets stuck is cut off: the line was begun.
    fn put(&mut self, output: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
        for chunk in bytes.chunks(CHUNK) {
            let mut rest = chunk;
            while !rest.is_empty() {
                if !self.has_room(output)? {
                    return Ok(());
                }
                match nix::unistd::write(output, rest) {
                    Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                    Err(nix::Error::EINTR | nix::Error::EAGAIN) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Whether the output takes a chunk now. A reader that is not known to be stuck is waited for.
    fn has_room(&mut self, output: BorrowedFd<'_>) -> io::Result<bool> {
        let patience = if self.stuck {
            PollTimeout::ZERO
        } else {
            PollTimeout::from(PATIENCE)
        };
        loop {
            let mut polled = [PollFd::new(output, PollFlags::POLLOUT)];
            match poll(&mut polled, patience) {
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
                Ok(ready) => {
                    self.stuck = ready == 0;
                    return Ok(!self.stuck);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Flow, Sink};
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    #[test]
    fn a_moved_file_is_created_again_when_reopened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let sink = Sink::open(Some(&path)).unwrap();
        (&sink).write_all(b"one\n").unwrap();
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        sink.reopen().unwrap();
        (&sink).write_all(b"two\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two\n");
        assert_eq!(
            std::fs::read_to_string(dir.path().join("old")).unwrap(),
            "one\n"
        );
    }

    #[test]
    fn logging_goes_on_in_the_open_file_when_its_directory_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let (there, gone) = (dir.path().join("logs"), dir.path().join("gone"));
        std::fs::create_dir(&there).unwrap();
        let sink = Sink::open(Some(&there.join("log"))).unwrap();
        std::fs::rename(&there, &gone).unwrap();
        sink.reopen().unwrap_err();
        (&sink).write_all(b"still here\n").unwrap();
        assert_eq!(
            std::fs::read_to_string(gone.join("log")).unwrap(),
            "still here\n"
        );
    }

    #[test]
    fn a_reader_who_stops_reading_stops_nobody_and_learns_what_was_lost() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut flow = Flow::default();
        let line = [b'x'; 4096];
        let mut written = 0;
        while flow.lost == 0 {
            flow.write(writer.as_fd(), &line).unwrap();
            written += 1;
            assert!(written < 10_000, "the pipe never filled");
        }
        assert!(flow.stuck);
        flow.write(writer.as_fd(), &line).unwrap();
        assert_eq!(flow.lost, 2);

        let mut drained = vec![0; 4096 * (written - 1)];
        reader.read_exact(&mut drained).unwrap();
        flow.write(writer.as_fd(), b"back\n").unwrap();
        drop(writer);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert!(
            rest.contains("count=2") && rest.ends_with("back\n"),
            "{rest}"
        );
    }

    #[test]
    fn a_reader_who_went_away_is_an_error_and_not_a_wait() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Flow::default()
            .write(writer.as_fd(), b"line\n")
            .unwrap_err();
    }
}
