import java.lang.reflect.Method;
import java.math.BigDecimal;
import java.sql.Connection;
import java.sql.DatabaseMetaData;
import java.sql.Date;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.ResultSetMetaData;
import java.sql.SQLException;
import java.sql.Statement;
import java.sql.Timestamp;
import java.sql.Types;
import java.util.ArrayList;
import java.util.Calendar;
import java.util.List;
import java.util.TimeZone;

/** Asks a gateway as tools do that know nothing but JDBC. Prints a line for each question: its name, a tab, and what came of it as JSON. */
public class Asker {
    private static final String ENDLESS =
        "select count(*) from subtotals a, subtotals b, subtotals c, subtotals d, subtotals e, subtotals f "
        + "where a.events + b.events + c.events + d.events + e.events + f.events = -1";

    interface Question {
        Object ask() throws Exception;
    }

    private final String address;

    Asker(String address) {
        this.address = address;
    }

    public static void main(String[] arguments) throws Exception {
        try {
            new Asker(arguments[0]).run();
            System.exit(0);
        } catch (Throwable error) {
            error.printStackTrace();
            System.exit(1); // the driver's threads would keep the process
        }
    }

    Connection connect(String properties) throws SQLException {
        return DriverManager.getConnection("jdbc:arrow-flight-sql://" + address + "/?useEncryption=false" + properties);
    }

    void run() throws Exception {
        Connection connection = connect(""); // never closed: the driver complains of what it leaves behind of errors and empty results
        DatabaseMetaData about = connection.getMetaData();
        say("getters", () -> getters(about));
        say("product", () -> about.getDatabaseProductName() + " " + about.getIdentifierQuoteString() + about.isReadOnly());
        say("catalogs", () -> rows(about.getCatalogs()));
        say("schemas", () -> rows(about.getSchemas()));
        say("tables", () -> rows(about.getTables(null, null, "sub%", new String[] {"TABLE"}), "TABLE_CAT", "TABLE_SCHEM", "TABLE_NAME", "TABLE_TYPE"));
        say("tables of another schema", () -> count(about.getTables(null, "other", "%", null)));
        say("tables with an escape", () -> rows(about.getTables(null, null, "subtotals\\_late", null), "TABLE_NAME"));
        say("system tables", () -> rows(about.getTables(null, null, null, new String[] {"SYSTEM TABLE"}),
            "TABLE_CAT", "TABLE_SCHEM", "TABLE_NAME", "TABLE_TYPE"));
        say("table types", () -> rows(about.getTableTypes()));
        say("columns", () -> rows(about.getColumns(null, null, "kinds", "%"),
            "COLUMN_NAME", "DATA_TYPE", "TYPE_NAME", "COLUMN_SIZE", "DECIMAL_DIGITS", "ORDINAL_POSITION"));
        say("primary keys", () -> rows(about.getPrimaryKeys(null, null, "subtotals"), "COLUMN_NAME", "KEY_SEQ"));
        say("imported keys", () -> count(about.getImportedKeys(null, null, "subtotals")));
        say("strings", () -> strings(connection, "select * from kinds order by \"long\" nulls last"));
        say("classes", () -> classes(connection, "select * from kinds where id <> 'none'"));
        say("decimals", () -> decimals(connection, "select total from kinds where id <> 'none'"));
        say("enum", () -> strings(connection, "select 'b'::enum('a', 'b') as choice"));
        say("twice", () -> twice(connection));
        say("prepared", () -> prepared(connection));
        say("prepared timestamp", () -> preparedTimestamp(connection));
        say("prepared types", () -> preparedTypes(connection));
        say("many rows", () -> strings(connection, "select count(*), sum(range) from range(300000)"));
        say("all of many rows", () -> all(connection, "select range as n from range(300000)"));
        say("no such table", () -> strings(connection, "select * from subtotal"));
        say("wrong statement", () -> strings(connection, "selec 1"));
        say("wrong prepared", () -> connection.prepareStatement("select * from subtotal"));
        say("change", () -> change(connection, "delete from subtotals"));
        say("after errors", () -> strings(connection, "select 42"));
        say("timeout", () -> timeout(connection));
        say("cancelled", () -> cancelled(connection));
        say("after that", () -> strings(connection, "select 42"));
        say("consistent", () -> strings(connect("&x-flowstate-consistent=true"), "select count(*) from subtotals"));
        say("too young", () -> strings(connect("&x-flowstate-at-least=%7B%22events-0%22%3A+5000%7D"), "select count(*) from subtotals"));
        say("wrong header", () -> strings(connect("&x-flowstate-max-agee=5"), "select 1"));
        say("naive", () -> naive(connect("&x-flowstate-timestamps=naive")));
        say("closed", () -> closed(connect("")));
        say("user", () -> strings(connect("&user=anna&password=secret"), "select 1"));
    }

    static Object getters(DatabaseMetaData about) {
        List<Object> failed = new ArrayList<>();
        int asked = 0;
        for (Method method : DatabaseMetaData.class.getMethods()) {
            if (method.getParameterCount() > 0 || method.getDeclaringClass() != DatabaseMetaData.class) {
                continue;
            }
            asked++;
            try {
                method.invoke(about);
            } catch (Exception error) {
                failed.add(method.getName() + ": " + error.getCause());
            }
        }
        return List.of(asked, failed);
    }

    static List<Object> rows(ResultSet found, String... columns) throws SQLException {
        List<Object> rows = new ArrayList<>();
        while (found.next()) {
            List<Object> row = new ArrayList<>();
            int count = columns.length == 0 ? found.getMetaData().getColumnCount() : columns.length;
            for (int at = 0; at < count; at++) {
                row.add(columns.length == 0 ? found.getString(at + 1) : found.getString(columns[at]));
            }
            rows.add(row);
        }
        found.close();
        return rows;
    }

    static int count(ResultSet found) throws SQLException {
        int count = 0;
        while (found.next()) {
            count++;
        }
        found.close();
        return count;
    }

    static Object all(Connection connection, String query) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            return count(statement.executeQuery(query));
        }
    }

    static Object change(Connection connection, String query) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            return statement.executeUpdate(query);
        }
    }

    static Object strings(Connection connection, String query) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            return rows(statement.executeQuery(query));
        }
    }

    static Object classes(Connection connection, String query) throws SQLException {
        try (Statement statement = connection.createStatement(); ResultSet found = statement.executeQuery(query)) {
            ResultSetMetaData about = found.getMetaData();
            List<Object> columns = new ArrayList<>();
            found.next();
            for (int at = 1; at <= about.getColumnCount(); at++) {
                Object value = about.getColumnType(at) == Types.TIMESTAMP_WITH_TIMEZONE
                    ? found.getObject(at, java.time.OffsetDateTime.class) : found.getObject(at);
                columns.add(List.of(about.getColumnLabel(at), about.getColumnTypeName(at), value.getClass().getSimpleName()));
            }
            return columns;
        }
    }

    static Object decimals(Connection connection, String query) throws SQLException {
        try (Statement statement = connection.createStatement(); ResultSet found = statement.executeQuery(query)) {
            found.next();
            ResultSetMetaData about = found.getMetaData();
            return List.of(found.getBigDecimal(1).toPlainString(), about.getPrecision(1), about.getScale(1));
        }
    }

    static Object twice(Connection connection) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            return List.of(rows(statement.executeQuery("select 1")), rows(statement.executeQuery("select 2")));
        }
    }

    static Object prepared(Connection connection) throws SQLException {
        String query = "select customer, total from subtotals where customer = ? and events >= ? order by total";
        List<Object> found = new ArrayList<>();
        try (PreparedStatement statement = connection.prepareStatement(query)) {
            for (String customer : new String[] {"customer-3", "customer-4", "nobody's"}) {
                statement.setString(1, customer);
                statement.setLong(2, 1);
                found.add(rows(statement.executeQuery()));
            }
            statement.setString(1, "customer-3");
            statement.setNull(2, Types.BIGINT);
            found.add(rows(statement.executeQuery()));
        }
        return found;
    }

    static Object preparedTimestamp(Connection connection) throws SQLException {
        Calendar utc = Calendar.getInstance(TimeZone.getTimeZone("UTC"));
        try (PreparedStatement statement = connection.prepareStatement("select count(*) from subtotals where month = ?")) {
            statement.setTimestamp(1, new Timestamp(1767225600000L), utc); // January 2026
            return rows(statement.executeQuery());
        }
    }

    static Object preparedTypes(Connection connection) throws SQLException {
        String query = "select id from kinds where \"long\" = ? and \"double\" = ? and flag = ? and day = ? and total = ?";
        try (PreparedStatement statement = connection.prepareStatement(query)) {
            statement.setLong(1, Long.MIN_VALUE);
            statement.setDouble(2, 0.1);
            statement.setBoolean(3, true);
            statement.setDate(4, Date.valueOf("1950-02-03"));
            statement.setBigDecimal(5, new BigDecimal("123456789012345678901234567890123456.78"));
            return rows(statement.executeQuery());
        }
    }

    static Object timeout(Connection connection) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            statement.setQueryTimeout(1);
            return rows(statement.executeQuery(ENDLESS));
        }
    }

    static Object cancelled(Connection connection) throws Exception {
        try (Statement statement = connection.createStatement()) {
            Thread other = new Thread(() -> {
                try {
                    Thread.sleep(500);
                    statement.cancel();
                } catch (Exception error) {
                    throw new IllegalStateException(error);
                }
            });
            other.start();
            try {
                return rows(statement.executeQuery(ENDLESS));
            } finally {
                other.join();
            }
        }
    }

    static Object closed(Connection connection) throws SQLException {
        try (connection) {
            return List.of(strings(connection, "select count(*) from subtotals"), connection.isValid(5));
        }
    }

    static Object naive(Connection connection) throws SQLException {
        try (Statement statement = connection.createStatement();
             ResultSet found = statement.executeQuery("select zoned from kinds where id <> 'none'")) {
            found.next();
            return List.of(found.getMetaData().getColumnTypeName(1), String.valueOf(found.getObject(1)));
        }
    }

    static void say(String name, Question question) {
        Object answer;
        try {
            answer = question.ask();
        } catch (Throwable error) {
            List<Object> causes = new ArrayList<>();
            for (Throwable each = error; each != null && causes.size() < 8; each = each.getCause()) {
                causes.add(each.getClass().getSimpleName() + ": " + each.getMessage());
            }
            answer = List.of("failed", causes);
        }
        System.out.println(name + "\t" + json(answer));
        System.out.flush();
    }

    static String json(Object value) {
        if (value == null) {
            return "null";
        }
        if (value instanceof Number || value instanceof Boolean) {
            return value.toString();
        }
        StringBuilder out = new StringBuilder();
        if (value instanceof List<?> list) {
            for (Object each : list) {
                out.append(out.length() == 0 ? "" : ", ").append(json(each));
            }
            return "[" + out + "]";
        }
        for (char each : value.toString().toCharArray()) {
            out.append(each == '"' || each == '\\' ? "\\" + each : each < 32 || each > 126 ? String.format("\\u%04x", (int) each) : each);
        }
        return "\"" + out + "\"";
    }
}
