import java.io.IOException;
import org.apache.flink.api.common.serialization.AbstractDeserializationSchema;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.api.java.tuple.Tuple3;

/** Bytes to (key, month, cents): what the totals need and no more. For the counts alone, month and cents are 0. */
final class Rows extends AbstractDeserializationSchema<Tuple3<String, Integer, Long>> {
    static final TypeInformation<Tuple3<String, Integer, Long>> TYPE = Types.TUPLE(Types.STRING, Types.INT, Types.LONG);
    private final boolean billing;
    private final boolean jackson;
    private transient Event event;
    private transient JacksonReader reader;

    Rows(boolean billing, boolean jackson) {
        super(TYPE);
        this.billing = billing;
        this.jackson = jackson;
    }

    @Override
    public Tuple3<String, Integer, Long> deserialize(byte[] message) throws IOException {
        if (event == null) {
            event = new Event();
            reader = new JacksonReader();
            Meter.begin();
        }
        if (jackson) reader.read(message, event);
        else event.read(message);
        return billing ? Tuple3.of(event.customer, event.month(), event.cents) : Tuple3.of(event.customer, 0, 0L);
    }
}
