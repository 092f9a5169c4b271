import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Timestamp;

/**
 * Answers queries: a line is a JDBC URL, a query and its parameters, with tabs between them. The answer is a line of values for each row
 * (timestamps as milliseconds since 1970) and a line with a dot, or an exclamation mark and the error.
 */
public class Rows {
    public static void main(String[] arguments) throws Exception {
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            try {
                answer(line.split("\t"));
                System.out.println(".");
            } catch (SQLException error) {
                System.out.println("!" + error.getMessage().replace('\n', ' '));
            }
            System.out.flush();
        }
        System.exit(0); // the driver's threads would keep the process
    }

    private static void answer(String[] asked) throws SQLException {
        try (Connection connection = DriverManager.getConnection(asked[0]);
                PreparedStatement statement = connection.prepareStatement(asked[1])) {
            for (int each = 2; each < asked.length; each++) {
                statement.setString(each - 1, asked[each]);
            }
            try (ResultSet rows = statement.executeQuery()) {
                while (rows.next()) {
                    StringBuilder text = new StringBuilder();
                    for (int each = 1; each <= rows.getMetaData().getColumnCount(); each++) {
                        Object value = rows.getObject(each);
                        text.append(each > 1 ? "\t" : "").append(value instanceof Timestamp time ? "" + time.getTime() : value);
                    }
                    System.out.println(text);
                }
            }
        }
    }
}
