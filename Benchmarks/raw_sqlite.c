// raw_sqlite DATABASE BATCH SECONDS: the peer of the writer in store.py. The same rows into the same table with the same durability, as a
// plain program does it: one prepared INSERT, values bound one by one, a transaction per batch. No decoding, no checksum, nobody to answer.
// Prints records per second. In C, for Python's sqlite3 spends as much on its tuples as SQLite on the rows.
#include <sqlite3.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static sqlite3 *db;

static void check(int code) {
    if (code == SQLITE_OK || code == SQLITE_DONE) return;
    fprintf(stderr, "raw_sqlite: %s\n", sqlite3_errmsg(db));
    exit(1);
}

static sqlite3_stmt *prepare(const char *sql) {
    sqlite3_stmt *statement;
    check(sqlite3_prepare_v3(db, sql, -1, SQLITE_PREPARE_PERSISTENT, &statement, NULL));
    return statement;
}

static void run(sqlite3_stmt *statement) {
    check(sqlite3_step(statement));
    check(sqlite3_reset(statement));
}

static double now(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

int main(int count, char **arguments) {
    if (count != 4) return 2;
    int batch = atoi(arguments[2]);
    double seconds = atof(arguments[3]);
    check(sqlite3_open_v2(arguments[1], &db, SQLITE_OPEN_READWRITE, NULL));
    check(sqlite3_exec(db, "PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 4000", NULL, NULL, NULL));
    sqlite3_stmt *begin = prepare("BEGIN IMMEDIATE"), *commit = prepare("COMMIT");
    sqlite3_stmt *insert = prepare("INSERT INTO usage_records VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT (id) DO NOTHING");
    static const int64_t numbers[] = {1200, 800, 350, 120, 6400, 420, 8300, 1, 40000, 22000, 3000000000};
    uint64_t number = 0;
    double start = now(CLOCK_MONOTONIC), end = start;
    for (; end - start < seconds; end = now(CLOCK_MONOTONIC)) {
        uint64_t time = (uint64_t)(now(CLOCK_REALTIME) * 1000);
        run(begin);
        for (int i = 0; i < batch; i++) {
            number++;
            unsigned char id[16] = {0};
            for (int k = 0; k < 6; k++) id[k] = (unsigned char)(time >> (40 - 8 * k));
            id[6] = 0x70 | (number >> 8 & 0xF), id[7] = (unsigned char)number;
            for (int k = 8; k < 16; k++) id[k] = (unsigned char)(number >> (120 - 8 * k));
            char request[40];
            int length = snprintf(request, sizeof request, "req_0123456789abcdef%llu", (unsigned long long)number);
            check(sqlite3_bind_blob(insert, 1, id, 16, SQLITE_STATIC));
            check(sqlite3_bind_int64(insert, 2, (int64_t)time));
            check(sqlite3_bind_text(insert, 3, "/v1/responses", 13, SQLITE_STATIC));
            check(sqlite3_bind_text(insert, 4, "http", 4, SQLITE_STATIC));
            check(sqlite3_bind_int64(insert, 5, 1));
            check(sqlite3_bind_int64(insert, 6, 1));
            check(sqlite3_bind_text(insert, 7, request, length, SQLITE_STATIC));
            check(sqlite3_bind_text(insert, 8, "gpt-5.4", 7, SQLITE_STATIC));
            check(sqlite3_bind_text(insert, 9, "gpt-5.4-2026-03-05", 18, SQLITE_STATIC));
            check(sqlite3_bind_int64(insert, 10, 200));
            check(sqlite3_bind_text(insert, 11, "", 0, SQLITE_STATIC));
            for (int k = 0; k < 11; k++) check(sqlite3_bind_int64(insert, 12 + k, numbers[k]));
            run(insert);
        }
        run(commit);
    }
    printf("%.0f\n", number / (end - start));
}
