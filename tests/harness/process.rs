//! One child process with its output in a file.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use crate::wait;

/// A finished command.
#[derive(Debug, Clone)]
pub struct Ran {
    pub stdout: String,
    pub stderr: String,
    /// The exit code, or 128 and the signal that ended it.
    pub code: i32,
}

impl Ran {
    pub fn succeeded(&self) -> bool {
        self.code == 0
    }

    /// Both streams, for assertions about texts.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// The output of a command that must succeed.
    pub fn ok(self) -> Result<String> {
        if self.code != 0 {
            bail!("exit code {}: {}", self.code, self.text().trim());
        }
        Ok(self.stdout)
    }

    /// The output of a command that must succeed, as JSON.
    pub fn json(self) -> Result<Value> {
        let text = self.ok()?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }
}

/// Sends a signal to a process, which the caller knows to be there.
#[expect(
    unsafe_code,
    reason = "kill(2) has no safe form in the standard library"
)]
pub fn signal(process: u32, signal: libc::c_int) -> Result<()> {
    let process = libc::pid_t::try_from(process)?;
    // SAFETY: kill takes plain numbers.
    let outcome = unsafe { libc::kill(process, signal) };
    if outcome != 0 {
        return Err(anyhow!(std::io::Error::last_os_error()).context("kill"));
    }
    Ok(())
}

/// Runs a command to its end, which must come within `limit`.
pub fn run(command: &mut Command, limit: Duration) -> Result<Ran> {
    let mut out = tempfile::tempfile()?;
    let mut err = tempfile::tempfile()?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(err.try_clone()?)
        .spawn()
        .with_context(|| format!("start {command:?}"))?;
    let status = match wait_for_exit(&mut child, limit) {
        Ok(status) => status,
        Err(error) => {
            child.kill()?;
            child.wait()?;
            return Err(error.context(format!(
                "{command:?}: {}{}",
                all(&mut out)?,
                all(&mut err)?
            )));
        }
    };
    Ok(Ran {
        stdout: all(&mut out)?,
        stderr: all(&mut err)?,
        code: code(status),
    })
}

fn all(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

fn wait_for_exit(child: &mut Child, limit: Duration) -> Result<ExitStatus> {
    wait::until("the process to exit", limit, || Ok(child.try_wait()?))
}

/// A process that runs until it is stopped or dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `program run -config FILE` from the directory of the file, below `wrapper`, a command such as `strace -f`.
    pub fn start_daemon(
        wrapper: &[String],
        program: &Path,
        config: &Path,
        log: &Path,
    ) -> Result<Self> {
        let mut command = match wrapper.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
            None => Command::new(program),
        };
        command.arg("run").arg("-config").arg(config);
        if let Some(directory) = config.parent() {
            command.current_dir(directory);
        }
        Self::start(&mut command, log)
    }

    /// Waits until `serves` holds; the error has the end of the log. `what` is its name in errors.
    pub fn until_serving(
        &mut self,
        what: &str,
        limit: Duration,
        serves: impl Fn() -> Result<()>,
    ) -> Result<()> {
        let mut exit = None;
        let serving = wait::until(&format!("{what} to serve"), limit, || {
            exit = self.ended()?;
            if exit.is_some() {
                return Ok(Some(()));
            }
            serves().map(Some)
        });
        if let Some(code) = exit {
            bail!("{what} ended with {code}:{}", self.tail());
        }
        serving.with_context(|| self.tail())
    }

    /// Starts `command`; both streams are appended to `log`.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        end_with_this_thread(command);
        let child = command
            .stdin(Stdio::piped())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        Ok(Self {
            child,
            log: log.to_owned(),
        })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has written.
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map_or_else(
            |error| format!("(no log: {error})"),
            |bytes| String::from_utf8_lossy(&bytes).into_owned(),
        )
    }

    /// Its last lines, for an error.
    pub fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines
            .iter()
            .skip(lines.len().saturating_sub(15))
            .map(|line| format!("\n  | {line}"))
            .collect()
    }

    /// The exit code, if it has ended.
    pub fn ended(&mut self) -> Result<Option<i32>> {
        Ok(self.child.try_wait()?.map(code))
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self, limit: Duration) -> Result<i32> {
        let status = wait_for_exit(&mut self.child, limit);
        status.map(code).with_context(|| self.tail())
    }

    /// Asks it to stop (SIGTERM) and waits.
    pub fn stop(&mut self, limit: Duration) -> Result<i32> {
        self.signal(libc::SIGTERM)?;
        self.wait(limit)
    }

    /// Ends it at once, as a crash would (SIGKILL).
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    pub fn signal(&self, signal: libc::c_int) -> Result<()> {
        // The child has not been waited for, so the number is still its own.
        self::signal(self.id(), signal)
    }

    /// Resident memory, in bytes.
    pub fn resident(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .context("no VmRSS")?;
        let kib: u64 = line
            .split_whitespace()
            .nth(1)
            .context("no number in VmRSS")?
            .parse()?;
        Ok(kib * 1024)
    }

    /// Processor time used so far, in seconds.
    pub fn processor_seconds(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id()))?;
        let after = stat.rsplit_once(") ").context("odd /proc/PID/stat")?.1;
        let fields: Vec<&str> = after.split(' ').collect();
        let ticks: u32 = [11, 12]
            .into_iter()
            .map(|at| {
                fields
                    .get(at)
                    .and_then(|field| field.parse::<u32>().ok())
                    .unwrap_or_default()
            })
            .sum();
        Ok(f64::from(ticks) / 100.0)
    }
}

/// A test that is itself killed drops nothing; the kernel then ends what it started.
#[expect(unsafe_code, reason = "a step between fork and exec has no safe form")]
fn end_with_this_thread(command: &mut Command) {
    use std::os::unix::process::CommandExt as _;
    let set = || {
        // SAFETY: prctl takes plain numbers, and may be called between fork and exec.
        match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure only makes one system call and allocates nothing.
    unsafe { command.pre_exec(set) };
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}
