// swift-tools-version: 6.2
import PackageDescription

let ours: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("MemberImportVisibility"),
    .enableUpcomingFeature("InternalImportsByDefault"),
    .treatAllWarnings(as: .error),
    // What debug builds and tests check each time; code is optimised across its modules (docs/decisions/0012).
    .unsafeFlags(["-enforce-exclusivity=unchecked", "-cross-module-optimization"], .when(configuration: .release)),
]

/// One layer's target: sources in `Sources/<name>`, unit tests (if any) in `Tests/<name>Tests`.
func part(_ name: String, _ dependencies: [Target.Dependency] = [], exclude: [String] = []) -> Target {
    .target(name: name, dependencies: dependencies, exclude: exclude, swiftSettings: ours)
}

/// The unit tests of one layer's target, in `Tests/<name>Tests`.
func suite(_ name: String, _ dependencies: [Target.Dependency] = ["Vocabulary"]) -> Target {
    .testTarget(name: name + "Tests", dependencies: [.target(name: name)] + dependencies, swiftSettings: ours)
}

func library(_ name: String, pkgConfig: String, apt: String) -> Target {
    .systemLibrary(name: name, pkgConfig: pkgConfig, providers: [.apt([apt])])
}

let log = Target.Dependency.product(name: "Logging", package: "swift-log")
let protobuf = Target.Dependency.product(name: "SwiftProtobuf", package: "swift-protobuf")
let arguments = Target.Dependency.product(name: "ArgumentParser", package: "swift-argument-parser")

let package = Package(
    name: "codex-lb",
    products: [.executable(name: "codex-lb", targets: ["codex-lb"])],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
        .package(url: "https://github.com/apple/swift-protobuf", from: "1.39.0", traits: []),
        .package(url: "https://github.com/apple/swift-nio", from: "2.101.2"),
    ],
    targets: [
        // 0  system libraries and our C
        library("CUV", pkgConfig: "libuv", apt: "libuv1-dev"),
        library("COpenSSL", pkgConfig: "openssl", apt: "libssl-dev"),
        library("CSQLite", pkgConfig: "sqlite3", apt: "libsqlite3-dev"),
        library("CPostgres", pkgConfig: "libpq", apt: "libpq-dev"),
        library("CZstd", pkgConfig: "libzstd", apt: "libzstd-dev"),
        library("CZlib", pkgConfig: "zlib", apt: "zlib1g-dev"),
        .target(name: "CPlatform", cSettings: [.define("_GNU_SOURCE")]),
        // 1  words
        part("Vocabulary"),
        part("Bytes"),
        // 2  bytes ⇄ values
        part("HTTPWire", ["Vocabulary", "Bytes"]),
        part("JSONWire", ["Vocabulary", "Bytes"]),
        part("ControlWire", ["Vocabulary", "Bytes", protobuf], exclude: ["control.proto"]),
        // 3  decisions
        part("Settings", ["Vocabulary"]),
        part("Schema"),
        part("Admission", ["Vocabulary", "Bytes", "HTTPWire", "JSONWire"]),
        part("Routing", ["Vocabulary"]),
        part("Exchange", ["Vocabulary", "Bytes", "HTTPWire", "JSONWire", "Routing", "Translation", "Metering"]),
        part("Metering", ["Vocabulary", "JSONWire"]),
        part("Translation", ["Vocabulary", "JSONWire"]),
        part("Fleet", ["Vocabulary"]),
        // 4  the world
        part("Platform", ["Vocabulary", "CPlatform"]),
        part("Loop", ["Vocabulary", "CUV", "CPlatform"]),
        part("TLS", ["COpenSSL"]),
        part("Transport", ["Vocabulary", "Loop", "TLS"]),
        part("Upstream", ["Vocabulary", "Bytes", "HTTPWire", "Exchange", "Loop", "TLS", "Transport", "Inflate"]),
        part("Sealing", ["Bytes", "COpenSSL", "CPlatform"]),
        part("Inflate", ["CZlib", "CZstd"]),
        part("Diagnostics", ["Vocabulary", log]),
        part("Store", ["Vocabulary", "Bytes", "ControlWire", "Settings", "Schema", "JSONWire", "Sealing", "CPlatform"]),
        part("SQLiteStore", ["Vocabulary", "ControlWire", "Schema", "Store", "CSQLite", "CPlatform"]),
        part("PostgresStore", ["Vocabulary", "Schema", "Settings", "Store", "Loop", "CPostgres"]),
        // 5  roles
        part(
            "SupervisorRole", ["Vocabulary", "ControlWire", "Settings", "Routing", "Fleet", "Platform", "Loop", "Diagnostics", log]),
        part("WriterRole", ["Vocabulary", "ControlWire", "Settings", "Platform", "Loop", "Diagnostics", "Store", "SQLiteStore", log]),
        part(
            "WorkerRole",
            [
                "Vocabulary", "Bytes", "HTTPWire", "JSONWire", "ControlWire", "Settings", "Admission", "Routing", "Exchange", "Metering",
                "Platform", "Loop", "Upstream", "Sealing", "Inflate", "Diagnostics", "Schema", "Store", "SQLiteStore",
                "PostgresStore", log,
            ]),
        part("DemoUpstream", ["Vocabulary", "Bytes", "HTTPWire", "JSONWire", "Loop", "Platform"]),
        // 6  the command line
        .executableTarget(
            name: "codex-lb",
            dependencies: [
                "Vocabulary", "HTTPWire", "ControlWire", "Settings", "Platform", "Loop", "Upstream", "Diagnostics", "Store", "SQLiteStore",
                "PostgresStore", "SupervisorRole", "WorkerRole", "WriterRole", "DemoUpstream", "JSONWire", "Schema", "Bytes", "Sealing",
                "Exchange", log, arguments,
            ],
            swiftSettings: ours),
        .executableTarget(
            name: "codex-lb-load", dependencies: ["Vocabulary", "HTTPWire", "Loop", "Platform", arguments],
            path: "Benchmarks/LoadGenerator",
            swiftSettings: ours),
        .executableTarget(
            name: "codex-lb-store-bench",
            dependencies: ["Vocabulary", "ControlWire", "Loop", "Settings", "Store", "PostgresStore", arguments],
            path: "Benchmarks/StoreBench", swiftSettings: ours),
        .executableTarget(
            name: "codex-lb-routing-bench", dependencies: ["Vocabulary", "Routing", "Platform", arguments],
            path: "Benchmarks/RoutingBench", swiftSettings: ours),
        // tests
        .target(
            name: "FakeUpstream", dependencies: ["Vocabulary", "HTTPWire", "Loop", "Platform"], path: "Tests/Support/FakeUpstream",
            swiftSettings: ours),
        .target(name: "DaemonHarness", path: "Tests/Support/DaemonHarness", swiftSettings: ours),
        .testTarget(
            name: "IntegrationTests", dependencies: ["FakeUpstream", "DaemonHarness", "Platform", "Vocabulary", "CPlatform"],
            swiftSettings: ours),
        suite("Exchange", ["Vocabulary", "Bytes", "HTTPWire", "JSONWire", "Metering", "Routing"]),
        .testTarget(name: "TidyTests", swiftSettings: ours),
        suite("Bytes", []),
        suite("Routing"),
        suite("Admission", ["Vocabulary", "HTTPWire"]),
        suite("Fleet"),
        suite("Platform", ["Vocabulary", "CPlatform"]),
        suite("Settings", []),
        suite("Translation", ["Vocabulary", "JSONWire"]),
        suite("ControlWire", ["Vocabulary", protobuf]),
        suite("Sealing", ["Vocabulary", "Bytes"]),
        suite("WriterRole"),
        suite("Store", ["Vocabulary", "ControlWire", "Schema", "Loop", "SQLiteStore", "PostgresStore", "Settings", "DaemonHarness"]),
        suite("Schema", []),
        .target(name: "FaultVFS", dependencies: ["CSQLite"], path: "Tests/Support/FaultVFS"),
        suite("SQLiteStore", ["Vocabulary", "Schema", "Store", "Sealing", "CSQLite", "FaultVFS"]),
        suite(
            "HTTPWire",
            [
                "Vocabulary", .product(name: "NIOCore", package: "swift-nio"), .product(name: "NIOEmbedded", package: "swift-nio"),
                .product(name: "NIOHTTP1", package: "swift-nio"),
            ]),
        suite("JSONWire"),
        suite("Inflate"),
        suite("Loop", []),
        suite("Metering"),
        suite("Upstream"),
    ]
)
