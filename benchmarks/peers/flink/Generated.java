import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.file.Path;
import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.api.common.functions.RichMapFunction;
import org.apache.flink.api.java.tuple.Tuple3;

/**
 * Rows that are in memory already: 16 bytes each in a file that is mapped (customer and month as 32-bit numbers, cents as 64), little end
 * first. Customers are texts that were made before the first row. Customer 0 is the one without a name.
 */
final class Generated extends RichMapFunction<Long, Tuple3<String, Integer, Long>> {
    private static final int ROW = 16;
    private final String file;
    private final int customerCount;
    private transient String[] customers;
    private transient ByteBuffer rows;

    Generated(String file, int customerCount) {
        this.file = file;
        this.customerCount = customerCount;
    }

    @Override
    public void open(OpenContext context) {
        customers = new String[customerCount];
        for (int each = 0; each < customers.length; each++) customers[each] = each == 0 ? "" : String.format("customer-%08d", each);
        try (FileChannel channel = FileChannel.open(Path.of(file))) {
            rows = channel.map(FileChannel.MapMode.READ_ONLY, 0, channel.size()).load().order(ByteOrder.LITTLE_ENDIAN);
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
    }

    @Override
    public Tuple3<String, Integer, Long> map(Long number) {
        if (number == 0) Meter.begin();
        int at = (int) (number * ROW);
        return Tuple3.of(customers[rows.getInt(at)], rows.getInt(at + 4), rows.getLong(at + 8));
    }
}
