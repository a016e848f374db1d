//! A file system that fails on demand: a folder shown a second time through FUSE, with errors, full disks, short
//! writes, flipped bits and slow reads wherever a test wants them. Needs root and `/dev/fuse`.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, SessionACL, TimeOrNow, WriteFlags,
};
use rustix::fs::{AtFlags, CWD, FallocateFlags, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid};

use crate::skip;

/// What goes wrong with every file whose path ends with a text.
#[derive(Debug, Clone)]
pub(crate) struct Trouble {
    /// The end of the path below the mount; `""` means every file.
    pub(crate) path: String,
    pub(crate) what: What,
}

#[derive(Debug, Clone)]
pub(crate) enum What {
    /// Reading any of these bytes is an I/O error, until all of them are written over: then a disk takes others.
    Unreadable(Range<u64>),
    /// Writing any of these bytes is an I/O error.
    Unwritable(Range<u64>),
    /// There is no room from this byte on.
    NoRoomFrom(u64),
    /// No write takes more than so many bytes.
    ShortWrites(usize),
    /// This bit of what is read is wrong, though it is right on the disk.
    FlippedBit(u64),
    /// Each reading takes so long.
    SlowReads(Duration),
    /// Nothing can be made durable.
    Unsynced,
}

/// The mounted file system; unmounted when dropped.
pub(crate) struct FaultFs {
    session: Option<BackgroundSession>,
    troubles: Arc<Troubles>,
    dir: tempfile::TempDir,
}

#[derive(Default)]
struct Troubles {
    list: Mutex<Vec<Trouble>>,
    happened: Mutex<u64>,
}

impl FaultFs {
    /// An empty file system without troubles; `None`, said loudly, where FUSE is not to be had.
    pub(crate) fn mount() -> Option<Self> {
        if larder::fsio::running_as().uid != 0 || !Path::new("/dev/fuse").exists() {
            skip::skipped("root and /dev/fuse are needed for a file system with faults");
            return None;
        }
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (behind, mount) = (dir.path().join("behind"), dir.path().join("mount"));
        larder::fsio::create_dir_all(&behind, None).unwrap();
        larder::fsio::create_dir_all(&mount, None).unwrap();
        let troubles = Arc::<Troubles>::default();
        let mut config = Config::default();
        (config.acl, config.n_threads) = (SessionACL::All, Some(4));
        let session = fuser::spawn_mount(Shown::new(&behind, &troubles), &mount, &config).unwrap();
        Some(Self { session: Some(session), troubles, dir })
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("mount")
    }

    /// From now on, exactly this goes wrong.
    pub(crate) fn set(&self, troubles: &[(&str, What)]) {
        let list = troubles.iter().map(|(path, what)| Trouble { path: (*path).to_owned(), what: what.clone() });
        *guard(&self.troubles.list) = list.collect();
        *guard(&self.troubles.happened) = 0;
    }

    /// How often something went wrong since the last [`FaultFs::set`]: a test of a fault that never came proves nothing.
    pub(crate) fn happened(&self) -> u64 {
        *guard(&self.troubles.happened)
    }
}

impl Drop for FaultFs {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            let _ = session.umount_and_join();
        }
    }
}

impl Troubles {
    /// The first trouble that `choose` makes something of.
    fn find<T>(&self, path: &Path, choose: impl Fn(&What) -> Option<T>) -> Option<T> {
        let path = path.to_string_lossy();
        let found = guard(&self.list).iter().filter(|one| path.ends_with(&one.path)).find_map(|one| choose(&one.what));
        *guard(&self.happened) += u64::from(found.is_some());
        found
    }

    fn overwritten(&self, path: &Path, range: &Range<u64>) {
        let path = path.to_string_lossy();
        let is_mended = |bad: &Range<u64>| range.start <= bad.start && bad.end <= range.end;
        guard(&self.list)
            .retain(|one| !matches!(&one.what, What::Unreadable(bad) if path.ends_with(&one.path) && is_mended(bad)));
    }
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn overlaps(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

/// The folder behind, as it is shown.
struct Shown {
    behind: PathBuf,
    troubles: Arc<Troubles>,
    /// By inode: where it was seen last.
    paths: Mutex<HashMap<u64, PathBuf>>,
    handles: Mutex<(u64, HashMap<u64, Arc<File>>)>,
    listings: Mutex<HashMap<u64, Vec<Entry>>>,
}

/// Inode, kind and name of what lies in a folder.
type Entry = (u64, FileType, std::ffi::OsString);
type Answer<T> = Result<T, Errno>;

fn told(error: impl Into<io::Error>) -> Errno {
    Errno::from(error.into())
}

const NOW: Duration = Duration::ZERO;

impl Shown {
    fn new(behind: &Path, troubles: &Arc<Troubles>) -> Self {
        let paths = Mutex::new(HashMap::from([(INodeNo::ROOT.0, behind.to_owned())]));
        let (handles, listings) = (Mutex::default(), Mutex::default());
        Self { behind: behind.to_owned(), troubles: Arc::clone(troubles), paths, handles, listings }
    }

    fn path(&self, ino: INodeNo) -> Answer<PathBuf> {
        guard(&self.paths).get(&ino.0).cloned().ok_or(Errno::ENOENT)
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> Answer<PathBuf> {
        Ok(self.path(parent)?.join(name))
    }

    fn look(&self, path: &Path) -> Answer<FileAttr> {
        let attr = attributes(&std::fs::symlink_metadata(path).map_err(told)?);
        let is_root = path == self.behind;
        if !is_root {
            guard(&self.paths).insert(attr.ino.0, path.to_owned());
        }
        Ok(FileAttr { ino: if is_root { INodeNo::ROOT } else { attr.ino }, ..attr })
    }

    fn keep(&self, file: File) -> FileHandle {
        let mut handles = guard(&self.handles);
        handles.0 += 1;
        let number = handles.0;
        handles.1.insert(number, Arc::new(file));
        FileHandle(number)
    }

    fn file(&self, handle: FileHandle) -> Answer<Arc<File>> {
        guard(&self.handles).1.get(&handle.0).cloned().ok_or(Errno::EBADF)
    }

    fn open_behind(&self, path: &Path, flags: i32, mode: u32) -> Answer<FileHandle> {
        // What is written is written here: no alignment is asked for, and appending is the kernel's business.
        let flags = OFlags::from_bits_retain(flags.cast_unsigned()) & !(OFlags::DIRECT | OFlags::APPEND);
        let file = rustix::fs::openat(CWD, path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(mode)).map_err(told)?;
        Ok(self.keep(File::from(file)))
    }

    fn read_some(&self, ino: INodeNo, file: &File, offset: u64, size: u32) -> Answer<Vec<u8>> {
        let path = self.path(ino)?;
        let range = offset..offset + u64::from(size);
        let is_unreadable = |what: &What| matches!(what, What::Unreadable(bad) if overlaps(bad, &range)).then_some(());
        if self.troubles.find(&path, is_unreadable).is_some() {
            return Err(Errno::EIO);
        }
        let slow = |what: &What| if let What::SlowReads(time) = what { Some(*time) } else { None };
        if let Some(time) = self.troubles.find(&path, slow) {
            std::thread::sleep(time);
        }
        let mut bytes = vec![0; size as usize];
        let mut got = 0;
        while got < bytes.len() {
            match file.read_at(&mut bytes[got..], offset + got as u64).map_err(told)? {
                0 => break,
                more => got += more,
            }
        }
        bytes.truncate(got);
        let end = offset + got as u64;
        let flipped = |what: &What| match what {
            What::FlippedBit(bit) if (offset..end).contains(&(bit / 8)) => Some(*bit),
            _ => None,
        };
        if let Some(bit) = self.troubles.find(&path, flipped) {
            bytes[(bit / 8 - offset) as usize] ^= 1 << (bit % 8);
        }
        Ok(bytes)
    }

    fn write_some(&self, ino: INodeNo, file: &File, offset: u64, bytes: &[u8]) -> Answer<u32> {
        let path = self.path(ino)?;
        let range = offset..offset + bytes.len() as u64;
        let refused = |what: &What| match what {
            What::Unwritable(bad) if overlaps(bad, &range) => Some(Errno::EIO),
            What::NoRoomFrom(first) if range.end > *first => Some(Errno::ENOSPC),
            _ => None,
        };
        if let Some(error) = self.troubles.find(&path, refused) {
            return Err(error);
        }
        let short = |what: &What| if let What::ShortWrites(most) = what { Some(*most) } else { None };
        let most = self.troubles.find(&path, short).unwrap_or(bytes.len()).min(bytes.len());
        file.write_all_at(&bytes[..most], offset).map_err(told)?;
        self.troubles.overwritten(&path, &(offset..offset + most as u64));
        Ok(most as u32)
    }

    fn sync(&self, ino: INodeNo, handle: FileHandle) -> Answer<()> {
        let unsynced = |what: &What| matches!(what, What::Unsynced).then_some(());
        match self.troubles.find(&self.path(ino)?, unsynced) {
            Some(()) => Err(Errno::EIO),
            None => self.file(handle)?.sync_all().map_err(told),
        }
    }

    fn list(&self, ino: INodeNo) -> Answer<FileHandle> {
        let entries = std::fs::read_dir(self.path(ino)?).map_err(told)?;
        let named = |entry: io::Result<std::fs::DirEntry>| {
            let entry = entry.map_err(told)?;
            let metadata = std::fs::symlink_metadata(entry.path()).map_err(told)?;
            Ok((metadata.ino(), kind(&metadata), entry.file_name()))
        };
        let entries: Vec<_> = entries.map(named).filter_map(|entry: Answer<_>| entry.ok()).collect();
        let handle = {
            let mut handles = guard(&self.handles);
            handles.0 += 1;
            handles.0
        };
        guard(&self.listings).insert(handle, entries);
        Ok(FileHandle(handle))
    }

    /// After a rename, what was seen below the old name lies below the new one.
    fn moved(&self, from: &Path, to: &Path) {
        for path in guard(&self.paths).values_mut() {
            if let Ok(rest) = path.strip_prefix(from) {
                *path = if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) };
            }
        }
    }
}

fn kind(metadata: &std::fs::Metadata) -> FileType {
    let kind = metadata.file_type();
    if kind.is_fifo() { FileType::NamedPipe } else { FileType::from_std(kind).unwrap_or(FileType::RegularFile) }
}

fn attributes(metadata: &std::fs::Metadata) -> FileAttr {
    let time = |seconds: i64, nanos: i64| {
        let whole = Duration::from_secs(seconds.unsigned_abs());
        let whole = if seconds < 0 { UNIX_EPOCH - whole } else { UNIX_EPOCH + whole };
        whole + Duration::from_nanos(nanos.unsigned_abs())
    };
    FileAttr {
        ino: INodeNo(metadata.ino()),
        size: metadata.size(),
        blocks: metadata.blocks(),
        atime: time(metadata.atime(), metadata.atime_nsec()),
        mtime: time(metadata.mtime(), metadata.mtime_nsec()),
        ctime: time(metadata.ctime(), metadata.ctime_nsec()),
        crtime: UNIX_EPOCH,
        kind: kind(metadata),
        perm: (metadata.mode() & 0o7777) as u16,
        nlink: metadata.nlink() as u32,
        uid: metadata.uid(),
        gid: metadata.gid(),
        rdev: metadata.rdev() as u32,
        blksize: 4096,
        flags: 0,
    }
}

fn timespec(time: Option<TimeOrNow>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(TimeOrNow::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(TimeOrNow::SpecificTime(time)) => {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            Timespec { tv_sec: since.as_secs().cast_signed(), tv_nsec: since.subsec_nanos().into() }
        }
    }
}

fn attempt<T>(work: impl FnOnce() -> Answer<T>) -> Answer<T> {
    work()
}

macro_rules! reply {
    ($reply:ident, $answer:expr, $value:pat => $good:expr) => {
        match attempt(|| $answer) {
            Ok($value) => $good,
            Err(error) => $reply.error(error),
        }
    };
}

impl Filesystem for Shown {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        reply!(reply, self.look(&self.child(parent, name)?), attr => reply.entry(&NOW, &attr, Generation(0)));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        let by_handle = |handle| Ok(attributes(&self.file(handle)?.metadata().map_err(told)?));
        let by_path = || self.look(&self.path(ino)?);
        reply!(reply, by_path().or_else(|error| handle.map_or(Err(error), by_handle)), attr => reply.attr(&NOW, &attr));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        handle: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = || {
            let path = self.path(ino)?;
            if let Some(mode) = mode {
                rustix::fs::chmod(&path, Mode::from_raw_mode(mode)).map_err(told)?;
            }
            if uid.is_some() || gid.is_some() {
                let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
                rustix::fs::chownat(CWD, &path, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(told)?;
            }
            match (size, handle) {
                (Some(size), Some(handle)) => self.file(handle)?.set_len(size).map_err(told)?,
                (Some(size), None) => {
                    std::fs::OpenOptions::new().write(true).open(&path).map_err(told)?.set_len(size).map_err(told)?;
                }
                (None, _) => {}
            }
            if atime.is_some() || mtime.is_some() {
                let times = Timestamps { last_access: timespec(atime), last_modification: timespec(mtime) };
                rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(told)?;
            }
            self.look(&path)
        };
        reply!(reply, change(), attr => reply.attr(&NOW, &attr));
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let read = || std::fs::read_link(self.path(ino)?).map_err(told);
        reply!(reply, read(), target => reply.data(target.as_os_str().as_encoded_bytes()));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let make = || {
            let path = self.child(parent, name)?;
            rustix::fs::mkdir(&path, Mode::from_raw_mode(mode & !umask)).map_err(told)?;
            self.look(&path)
        };
        reply!(reply, make(), attr => reply.entry(&NOW, &attr, Generation(0)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply!(reply, rustix::fs::unlink(self.child(parent, name)?).map_err(told), () => reply.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply!(reply, rustix::fs::rmdir(self.child(parent, name)?).map_err(told), () => reply.ok());
    }

    fn symlink(&self, _: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let make = || {
            let path = self.child(parent, name)?;
            rustix::fs::symlink(target, &path).map_err(told)?;
            self.look(&path)
        };
        reply!(reply, make(), attr => reply.entry(&NOW, &attr, Generation(0)));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let rename = || {
            let (from, to) = (self.child(parent, name)?, self.child(new_parent, new_name)?);
            rustix::fs::rename(&from, &to).map_err(told)?;
            self.moved(&from, &to);
            Ok(())
        };
        reply!(reply, rename(), () => reply.ok());
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let link = || {
            let path = self.child(parent, name)?;
            rustix::fs::link(self.path(ino)?, &path).map_err(told)?;
            self.look(&path)
        };
        reply!(reply, link(), attr => reply.entry(&NOW, &attr, Generation(0)));
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        reply!(reply, self.open_behind(&self.path(ino)?, flags.0, 0), handle => reply.opened(handle, FopenFlags::empty()));
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let create = || {
            let path = self.child(parent, name)?;
            let flags = flags | OFlags::CREATE.bits().cast_signed();
            let handle = self.open_behind(&path, flags, mode & !umask)?;
            Ok((self.look(&path)?, handle))
        };
        reply!(reply, create(), (attr, handle) => reply.created(&NOW, &attr, Generation(0), handle, FopenFlags::empty()));
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        reply!(reply, self.read_some(ino, &*self.file(handle)?, offset, size), bytes => reply.data(&bytes));
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply!(reply, self.write_some(ino, &*self.file(handle)?, offset, data), len => reply.written(len));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        guard(&self.handles).1.remove(&handle.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        reply!(reply, self.sync(ino, handle), () => reply.ok());
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply!(reply, self.list(ino), handle => reply.opened(handle, FopenFlags::empty()));
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listings = guard(&self.listings);
        let entries = listings.get(&handle.0).map(Vec::as_slice).unwrap_or_default();
        for (number, (ino, kind, name)) in entries.iter().enumerate().skip(offset as usize) {
            if reply.add(INodeNo(*ino), number as u64 + 1, *kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        guard(&self.listings).remove(&handle.0);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply!(reply, rustix::fs::statvfs(&self.behind).map_err(told), s => reply.statfs(
            s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree, s.f_bsize as u32, 255, s.f_frsize as u32,
        ));
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let flags = FallocateFlags::from_bits_retain(mode.cast_unsigned());
        reply!(reply, rustix::fs::fallocate(&*self.file(handle)?, flags, offset, length).map_err(told), () => reply.ok());
    }
}
