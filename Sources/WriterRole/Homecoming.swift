internal import ControlWire
internal import Platform
public import Store
internal import Vocabulary

#if canImport(Glibc)
    internal import Glibc
#endif

/// Stores the usage records that an earlier run, or an orphan of one, left as files (docs/decisions/0009).
public enum Homecoming {
    /// Stores each file and removes it; a record that is there already is left as it is. `tell` gets a line for whatever is worth one.
    /// False when a file stays to be tried again.
    public static func run(_ directories: [String], _ store: StoreSession, tell: (String) -> Void) -> Bool {
        var isWell = true
        for file in Spool.files(directories: directories) {
            let (entries, isWhole): ([[UInt8]], Bool)
            do throws(SystemError) { (entries, isWhole) = try Spool.load(file) } catch {
                tell("\(error); the usage records in it stay there")
                isWell = false
                continue
            }
            var stored = 0
            do throws(StoreError) {
                for start in stride(from: 0, to: entries.count, by: Limits.batchRecordsMax) {
                    var records = JournalRows()
                    records.append(entries: entries[start..<min(entries.count, start + Limits.batchRecordsMax)]) { hex, error in
                        tell("a usage record of \(file) can't be read: \(error): \(hex)")
                    }
                    let (new, refused) = try store.appendWhatFits(records)
                    stored += new
                    if !refused.isEmpty { try keep(refused, directories, tell) }
                }
            } catch {
                // The server is of use all the same, and the file is there for the next try.
                tell("\(file): \(error.message); the usage records in it stay there")
                isWell = false
                continue
            }
            tell("\(stored) usage records of an earlier run stored from \(file)")
            // A torn file has told what it has; it is kept for whoever wants to look.
            if isWhole { unlink(file) } else { rename(file, file + ".torn") }
        }
        return isWell
    }

    /// Records that the store refuses for what they are go into a file of their own: they must not hold up the others for ever.
    static func keep(_ refused: [[UInt8]], _ directories: [String], _ tell: (String) -> Void) throws(StoreError) {
        do throws(SystemError) {
            let path = try Spool.keep(refused: refused, directories: directories, now: Clock.wall)
            tell(
                "\(refused.count) usage records that the database refuses are kept in \(path); try them again with: codex-lb db spool retry"
            )
        } catch {
            throw StoreError(.io, "\(error)")
        }
    }
}
