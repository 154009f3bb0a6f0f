/// Who gives a command: a user of the operating system.
public struct Operator: Sendable, Equatable, CustomStringConvertible {
    public struct User: Sendable, Equatable, CustomStringConvertible {
        public var id: UInt32
        /// Empty: it has none.
        public var name: String
        public init(_ id: UInt32, _ name: String) { (self.id, self.name) = (id, name.cut(utf8: Limits.userNameBytesMax)) }
        public var description: String { name.isEmpty ? "uid \(id)" : "\(name) (\(id))" }
    }
    public var user: User
    /// Who became root by sudo: root's word alone says so.
    public let sudoer: User?

    public init(_ user: User, sudoer: User? = nil) {
        self.user = user
        self.sudoer = user.id == 0 ? sudoer : nil
    }

    /// `SUDO_UID` and `SUDO_USER`, as sudo(8) sets them.
    public init(_ user: User, environment: [String: String]) {
        self.init(user, sudoer: environment["SUDO_UID"].flatMap { UInt32($0) }.map { User($0, environment["SUDO_USER"] ?? "") })
    }

    public var description: String { sudoer.map { "\($0) by sudo" } ?? "\(user)" }
}
