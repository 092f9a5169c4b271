import com.sun.management.OperatingSystemMXBean;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.lang.management.ManagementFactory;
import java.util.Map;
import java.util.TreeMap;

/** Time by the clock and of all threads of this process, collector and compiler included, from the first event until the last is in state. */
final class Meter {
    private static final OperatingSystemMXBean SYSTEM = (OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
    private static long begun;
    private static long used;
    private static double clock;
    private static double processor;
    /** What is to be done when the last event is in state. */
    static Runnable atEnd = () -> {};
    /** Lookups that were answered meanwhile. */
    static volatile long asked;

    static void begin() {
        used = SYSTEM.getProcessCpuTime();
        begun = System.nanoTime();
    }

    static void end() {
        clock = (System.nanoTime() - begun) / 1e9;
        processor = (SYSTEM.getProcessCpuTime() - used) / 1e9;
        atEnd.run();
    }

    /** One line of JSON for the process that asked. */
    static void tell(long groups, long events, long cents) {
        System.out.printf("{\"seconds\": %.6f, \"cpu\": %.6f, \"groups\": %d, \"events\": %d, \"cents\": %d, \"asked\": %d}%n", clock, processor, groups, events, cents, asked);
        System.out.flush();
    }

    /** A line on standard input asks for one more run; its end ends the process. */
    static void serve(Run run) throws Exception {
        BufferedReader asked = new BufferedReader(new InputStreamReader(System.in));
        while (asked.readLine() != null) run.once();
        System.exit(0);
    }

    interface Run {
        void once() throws Exception;
    }

    /** `name=value` each. */
    static Map<String, String> options(String[] given) {
        Map<String, String> found = new TreeMap<>();
        for (String each : given) found.put(each.substring(0, each.indexOf('=')), each.substring(each.indexOf('=') + 1));
        return found;
    }
}
