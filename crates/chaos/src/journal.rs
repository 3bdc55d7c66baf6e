//! What was decided and done, as JSON lines: a file for each experiment, and one for the engine.

mod record;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use crate::audit::Audit;
use crate::report::{Injected, RecoveryReport, Report};
use crate::status::{Event, Status};
use crate::target::ProcessId;

pub use record::{Header, HitRecord, Record, VERSION};
pub(crate) use record::{Hit, amount, micros};

/// How much a journal keeps. What is older makes room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalLimits {
    /// Experiments.
    pub experiments: usize,
    /// Bytes of all of them.
    pub bytes: u64,
    /// Bytes of one; hits beyond are counted, not written.
    pub experiment_bytes: u64,
}

impl Default for JournalLimits {
    /// 10,000 experiments, 1 GiB, 64 MiB each.
    fn default() -> Self {
        Self { experiments: 10_000, bytes: 1 << 30, experiment_bytes: 64 << 20 }
    }
}

/// Why a journal cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("the journal in {} cannot be {what}", .path.display())]
pub struct JournalError {
    /// Which file or folder.
    pub path: PathBuf,
    /// What was tried.
    pub what: &'static str,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

/// What an earlier run had left unfinished. Its faults ended with it; its records have been closed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// The experiments.
    pub ids: Vec<u64>,
    /// What was done outside of the process and not taken back: the experiment and the target's name.
    pub intents: Vec<(u64, String)>,
    /// The processes that were started for those, with the experiment and the target's name.
    pub processes: Vec<(u64, String, ProcessId)>,
}

impl Swept {
    /// Closes what runs that ended without notice have left unfinished in the folder of a [`Journal`], which nobody has open.
    ///
    /// # Errors
    /// The folder cannot be read or written.
    pub fn in_folder(folder: &Path) -> Result<Self, JournalError> {
        let mut swept = Self::default();
        for (id, rest, path) in files(folder)? {
            if rest == "running.jsonl" {
                let closed = swept.close(id, &path);
                closed.map_err(|source| JournalError { path, what: "swept", source })?;
            }
        }
        swept.ids.sort_unstable();
        Ok(swept)
    }

    fn close(&mut self, id: u64, path: &Path) -> io::Result<()> {
        let text = fs::read(path)?;
        let records: Vec<Record> =
            text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
        let Some(Record::Experiment(header)) = records.first() else {
            // Nothing was done before the first line was whole.
            return fs::remove_file(path);
        };
        let (mut open, mut processes) = (Vec::new(), Vec::new());
        for record in &records {
            match record {
                Record::Intent { target, .. } if !open.contains(target) => open.push(target.clone()),
                Record::Process { target, process, .. } => processes.push((id, target.clone(), *process)),
                Record::Undone { target, .. } => {
                    open.retain(|intent| intent != target);
                    processes.retain(|(_, by, _)| by != target);
                }
                _ => {}
            }
        }
        let mut file = OpenOptions::new().append(true).open(path)?;
        // A line that was cut stays recognisable as one.
        if !text.ends_with(b"\n") {
            file.write_all(b"\n")?;
        }
        let report = Box::new(unfinished(header, &records));
        if !matches!(records.last(), Some(Record::End { .. })) {
            file.write_all(&line(&Record::End { report }))?;
        }
        file.sync_data()?;
        fs::rename(path, path.with_file_name(format!("{id}.jsonl")))?;
        self.ids.push(id);
        self.processes.extend(processes);
        self.intents.extend(open.into_iter().map(|target| (id, target)));
        Ok(())
    }
}

/// The files of experiments in a folder: which one, what follows that in the name, and where it is.
fn files(folder: &Path) -> Result<Vec<(u64, String, PathBuf)>, JournalError> {
    let named = |entry: fs::DirEntry| {
        let name = entry.file_name();
        let (id, rest) = name.to_str()?.split_once('.')?;
        Some((id.parse().ok()?, rest.to_owned(), entry.path()))
    };
    let all = fs::read_dir(folder).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
    let all = all.map_err(|source| JournalError { path: folder.to_owned(), what: "read", source })?;
    Ok(all.into_iter().filter_map(named).collect())
}

/// Where experiments are written down. It may touch the disk whenever the controller is driven, never on the data path.
#[derive(Debug)]
pub struct Journal {
    place: Place,
    limits: JournalLimits,
    /// Of the experiments that have ended: how long their journals are.
    ended: BTreeMap<u64, u64>,
    reports: VecDeque<Report>,
    errors: u64,
    swept: Swept,
}

#[derive(Debug)]
enum Place {
    Memory { texts: BTreeMap<u64, Vec<u8>> },
    Folder { path: PathBuf, open: BTreeMap<u64, Open>, engine: Option<(File, u64)> },
}

#[derive(Debug)]
struct Open {
    file: BufWriter<File>,
    bytes: u64,
}

/// Reports kept in memory.
const REPORTS: usize = 256;
/// What a journal in memory keeps.
const IN_MEMORY: JournalLimits = JournalLimits { experiments: 64, bytes: 64 << 20, experiment_bytes: 4 << 20 };
/// How much of a file is looked at for its last line: first so much, which mostly is enough, then so much.
const TAILS: [u64; 2] = [16 * 1024, 512 * 1024];
/// How long the engine's own file grows before it makes room.
const ENGINE_BYTES: u64 = 8 << 20;

impl Default for Journal {
    fn default() -> Self {
        Self::in_memory()
    }
}

impl Journal {
    /// Keeps the newest experiments in memory, and nothing on disk.
    #[must_use]
    pub fn in_memory() -> Self {
        Self::new(Place::Memory { texts: BTreeMap::new() }, IN_MEMORY)
    }

    /// Keeps experiments in this folder, which is made if it is not there. What an earlier run has left unfinished is
    /// closed: [`Journal::swept`].
    ///
    /// # Errors
    /// The folder cannot be made, read or written.
    pub fn open(folder: &Path, limits: JournalLimits) -> Result<Self, JournalError> {
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source| JournalError { path, what, source }
        };
        fs::create_dir_all(folder).map_err(failed("made", folder))?;
        let place = Place::Folder { path: folder.to_owned(), open: BTreeMap::new(), engine: None };
        let mut journal = Self::new(place, limits);
        journal.swept = Swept::in_folder(folder)?;
        for (id, rest, path) in files(folder)? {
            if rest == "jsonl" {
                let bytes = fs::metadata(&path).map_err(failed("read", &path))?.len();
                journal.ended.insert(id, bytes);
            }
        }
        journal.load_reports();
        Ok(journal)
    }

    /// The processes that another run of this program had left, with a journal that nobody goes on with, are ended with those that
    /// this journal's had left: by the targets, once they are registered. Its experiments stay its own.
    #[must_use]
    pub fn ending(mut self, left: Swept) -> Self {
        self.swept.processes.extend(left.processes);
        self
    }

    fn new(place: Place, limits: JournalLimits) -> Self {
        let (ended, reports) = (BTreeMap::new(), VecDeque::new());
        Self { place, limits, ended, reports, errors: 0, swept: Swept::default() }
    }

    /// What an earlier run had left unfinished.
    #[must_use]
    pub fn swept(&self) -> &Swept {
        &self.swept
    }

    fn load_reports(&mut self) {
        let newest: Vec<_> = self.ended.keys().rev().take(REPORTS).copied().collect();
        self.reports = newest.into_iter().filter_map(|id| self.last_report(id)).map(short).collect();
    }

    /// The report at the end of an experiment's journal.
    fn last_report(&self, id: u64) -> Option<Report> {
        let tail = match &self.place {
            Place::Memory { texts } => Cow::from(texts.get(&id).filter(|_| self.ended.contains_key(&id))?),
            Place::Folder { path, .. } => Cow::from(tail(&path.join(format!("{id}.jsonl"))).ok()?),
        };
        let last = tail.trim_ascii_end().rsplit(|byte| *byte == b'\n').next()?;
        match serde_json::from_slice(last) {
            Ok(Record::End { report }) => Some(*report),
            _ => None,
        }
    }

    /// The number of the newest experiment.
    pub(crate) fn newest(&self) -> u64 {
        self.ended.keys().next_back().copied().unwrap_or(0)
    }

    pub(crate) fn errors(&self) -> u64 {
        self.errors
    }

    /// The newest reports, newest first, without their samples.
    pub(crate) fn reports(&self) -> impl Iterator<Item = &Report> {
        self.reports.iter()
    }

    /// So many reports, newest first, without their samples. What is not kept in memory is read from disk.
    pub(crate) fn history(&self, most: usize) -> Vec<Report> {
        let newest = self.reports.iter().take(most).cloned();
        let kept: BTreeSet<_> = self.reports.iter().map(|report| report.id).collect();
        let older = self.ended.keys().rev().filter(|id| !kept.contains(*id));
        newest.chain(older.filter_map(|id| self.last_report(*id)).map(short)).take(most).collect()
    }

    pub(crate) fn ended(&self) -> usize {
        self.ended.len()
    }

    /// The whole journal of an experiment that has ended.
    pub(crate) fn text(&self, id: u64) -> Option<String> {
        match &self.place {
            Place::Memory { texts } => {
                let text = texts.get(&id).filter(|_| self.ended.contains_key(&id))?;
                Some(String::from_utf8_lossy(text).into_owned())
            }
            Place::Folder { path, .. } => fs::read_to_string(path.join(format!("{id}.jsonl"))).ok(),
        }
    }

    pub(crate) fn report(&self, id: u64) -> Option<Report> {
        let kept = || self.reports.iter().find(|report| report.id == id).cloned();
        self.last_report(id).or_else(kept)
    }

    /// Begins an experiment: its first line outlives this process.
    pub(crate) fn begin(&mut self, header: Header) -> Result<(), JournalError> {
        let id = header.id;
        let line = line(&Record::Experiment(header));
        match &mut self.place {
            Place::Memory { texts } => drop(texts.insert(id, line)),
            Place::Folder { path, open, .. } => {
                let path = path.join(format!("{id}.running.jsonl"));
                let begun = OpenOptions::new().create_new(true).write(true).open(&path).and_then(|mut file| {
                    file.write_all(&line)?;
                    Ok(Open { file: BufWriter::new(file), bytes: line.len() as u64 })
                });
                open.insert(id, begun.map_err(|source| JournalError { path, what: "written", source })?);
            }
        }
        Ok(())
    }

    /// Writes a line; whether it was written.
    pub(crate) fn write(&mut self, id: u64, record: &Record) -> bool {
        let most = if matches!(record, Record::Hit(_)) { self.limits.experiment_bytes } else { u64::MAX };
        self.append(id, record, most)
    }

    fn append(&mut self, id: u64, record: &Record, most: u64) -> bool {
        let line = line(record);
        let written = match &mut self.place {
            Place::Memory { texts } => match texts.get_mut(&id) {
                Some(text) if text.len() as u64 + line.len() as u64 <= most => {
                    text.extend_from_slice(&line);
                    true
                }
                _ => return false,
            },
            Place::Folder { open, .. } => match open.get_mut(&id) {
                Some(open) if open.bytes + line.len() as u64 <= most => {
                    open.bytes += line.len() as u64;
                    open.file.write_all(&line).is_ok()
                }
                _ => return false,
            },
        };
        self.errors += u64::from(!written);
        written
    }

    /// Puts an intent on disk before it is carried out.
    pub(crate) fn write_ahead(&mut self, id: u64, record: &Record) -> Result<(), JournalError> {
        let Place::Folder { path, open, .. } = &mut self.place else {
            self.write(id, record);
            return Ok(());
        };
        let path = path.join(format!("{id}.running.jsonl"));
        let Some(open) = open.get_mut(&id) else {
            let source = io::Error::from(io::ErrorKind::NotFound);
            return Err(JournalError { path, what: "written", source });
        };
        let line = line(record);
        open.bytes += line.len() as u64;
        let synced = open.file.write_all(&line).and_then(|()| open.file.flush());
        let synced = synced.and_then(|()| open.file.get_ref().sync_data());
        synced.map_err(|source| JournalError { path, what: "synced", source })
    }

    /// Hands everything to the operating system, where it outlives this process.
    pub(crate) fn flush(&mut self) {
        let Place::Folder { open, .. } = &mut self.place else { return };
        let failed = open.values_mut().filter_map(|open| open.file.flush().err()).count();
        self.errors += failed as u64;
    }

    /// Ends an experiment.
    pub(crate) fn end(&mut self, report: Report) {
        let id = report.id;
        let record = Record::End { report: Box::new(report) };
        self.append(id, &record, u64::MAX);
        let bytes = match &mut self.place {
            Place::Memory { texts } => texts.get(&id).map_or(0, |text| text.len() as u64),
            Place::Folder { path, open, .. } => {
                let Some(mut open) = open.remove(&id) else { return };
                let (from, to) = (path.join(format!("{id}.running.jsonl")), path.join(format!("{id}.jsonl")));
                if open.file.flush().is_err() || fs::rename(from, to).is_err() {
                    self.errors += 1;
                }
                open.bytes
            }
        };
        self.ended.insert(id, bytes);
        if let Record::End { report } = record {
            self.reports.push_front(short(*report));
            self.reports.truncate(REPORTS);
        }
        self.make_room();
    }

    fn make_room(&mut self) {
        let mut bytes: u64 = self.ended.values().sum();
        while self.ended.len() > self.limits.experiments.max(1) || (bytes > self.limits.bytes && self.ended.len() > 1) {
            let Some((id, size)) = self.ended.pop_first() else { return };
            bytes -= size;
            match &mut self.place {
                Place::Memory { texts } => drop(texts.remove(&id)),
                Place::Folder { path, .. } => {
                    if fs::remove_file(path.join(format!("{id}.jsonl"))).is_err() {
                        self.errors += 1;
                    }
                }
            }
        }
    }

    /// Writes down what happened to the engine: refusals, stops, changes.
    pub(crate) fn note(&mut self, event: &Event) {
        let Place::Folder { path, engine, .. } = &mut self.place else { return };
        let name = path.join("engine.jsonl");
        let written = (|| {
            if engine.as_ref().is_some_and(|(_, bytes)| *bytes > ENGINE_BYTES) {
                *engine = None;
                fs::rename(&name, path.join("engine.1.jsonl"))?;
            }
            if engine.is_none() {
                let file = OpenOptions::new().create(true).append(true).open(&name)?;
                let bytes = file.metadata()?.len();
                *engine = Some((file, bytes));
            }
            let line = line(event);
            let Some((file, bytes)) = engine else { return Ok(()) };
            *bytes += line.len() as u64;
            file.write_all(&line)
        })();
        let written: io::Result<()> = written;
        self.errors += u64::from(written.is_err());
    }
}

/// The end of a file, in which its last line is: a report has at most so many bytes, as its parameters are checked.
fn tail(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let mut tail = Vec::new();
    for most in TAILS {
        tail.clear();
        file.seek(SeekFrom::Start(bytes.saturating_sub(most)))?;
        (&mut file).take(most).read_to_end(&mut tail)?;
        if tail.trim_ascii_end().contains(&b'\n') {
            break;
        }
    }
    Ok(tail)
}

/// A report as lists have it.
fn short(report: Report) -> Report {
    Report { samples: Vec::new(), ..report }
}

fn line(record: &impl serde::Serialize) -> Vec<u8> {
    // What is written here are structs with text keys, which cannot fail.
    let mut line = serde_json::to_vec(record).unwrap_or_default();
    line.push(b'\n');
    line
}

/// What can be said of an experiment whose process ended without notice, by its records.
fn unfinished(header: &Header, records: &[Record]) -> Report {
    let count = |which: fn(&Record) -> bool| records.iter().filter(|record| which(record)).count() as u64;
    let hits = count(|record| matches!(record, Record::Hit(_)));
    // What is written down before it is done was done at once.
    let observed = count(|record| matches!(record, Record::Intent { .. }));
    // Nothing was written later, so nothing is known later.
    let lasted = records.iter().filter_map(Record::t_us).max().unwrap_or(0);
    Report {
        id: header.id,
        scenario: header.scenario.clone(),
        status: Status::Aborted,
        error: Some("the instance ended during the experiment".to_owned()),
        started_by: header.started_by,
        parameters: header.parameters.clone(),
        seed: header.seed,
        targets: header.targets.clone(),
        start_time: header.time,
        end_time: header.time.saturating_add(lasted / 1000),
        before: None,
        during: None,
        after: None,
        injection: Injected { injected: hits + observed, observed, ..Injected::default() },
        steady_state: Vec::new(),
        guard: None,
        time_to_detect: None,
        recovery: RecoveryReport { limit: 0, time: None, observed: false },
        outages: Vec::new(),
        leak: None,
        audit: Audit::default(),
        replay: None,
        samples: Vec::new(),
    }
}
